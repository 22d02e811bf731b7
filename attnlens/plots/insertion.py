"""Theorem 3.2: visual mass against the fraction of keys that insertions make visual."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.results import interval_text
from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.results import check_result, interval_ends, interval_note
from attnlens.plots.style import (
    BAR,
    DASHED,
    LONE_COLOUR,
    ZERO_LINE,
    colours,
    style,
    width_in_inches,
)
from attnlens.text import counted

if TYPE_CHECKING:
    from attnlens.measures.theorems.insertion import Insertion

HEIGHT = 2.5
"""Height of the figure without caption, in inches."""


def insertion(result: Insertion, *, width: str | float = "two-column") -> Figure:
    """Draw visual mass against the fraction of visual keys, and what each rise is made of.

    Parameters
    ----------
    result
        What ``attnlens.measures.insertion`` returns.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): mass on visual and inserted keys against their fraction
        of all keys, r', with intervals over prompts, and the line mass = r'. Right: change of the
        log-odds of that mass against the untouched twin, as key counts and preference.

    Raises
    ------
    InputError
        If it is given something else, the width cannot be used, or nothing was inserted.
    """
    check_result(result, "Insertion", "attnlens.measures.insertion")
    inches = width_in_inches(width)
    table = result.table
    if not (table["inserted"] > 0).any():
        raise InputError("nothing to draw: no visual token was inserted")
    blue, orange = colours()["image"], colours()["query"]
    with style():
        panels = two_panels(inches, HEIGHT)
        left, right = panels.axes
        first, second = panels.places
        share, mass = table["key_share"].to_numpy(), table["mass"].to_numpy()
        ends = interval_ends(mass, table["mass_low"], table["mass_high"])
        left.errorbar(share, mass, yerr=ends, color=blue, marker="o", capsize=2, label="measured")
        line = np.array([share.min(), share.max()])
        left.plot(line, line, color=LONE_COLOUR, ls=DASHED, label="mass = r'")
        left.set(xlabel="r' (fraction of keys, inserted included)")
        left.set_ylabel("visual mass (fraction),\ninserted included")
        left.set_ylim(bottom=0)
        left.legend(loc="upper left")
        changed = table[table["inserted"] > 0]
        rows = np.arange(len(changed))[::-1]
        looks = (("counts", "key counts", orange, "s"), ("preference", "preference", blue, "o"))
        for shift, (name, label, colour, marker) in zip((0.13, -0.13), looks, strict=True):
            values = changed[name].to_numpy()
            ends = interval_ends(values, changed[f"{name}_low"], changed[f"{name}_high"])
            right.errorbar(
                values,
                rows + shift,
                xerr=ends,
                **BAR,
                color=colour,
                marker=marker,
                mfc=colour if marker == "o" else "white",
                label=label,
            )
        right.axvline(0, **ZERO_LINE)
        right.set_yticks(rows, changed["insertion"])
        right.set_ylim(-0.5, len(changed) - 0.5 + 0.9)
        right.set_xlabel("change of log-odds (natural log)")
        right.legend(loc="upper center", ncols=2, columnspacing=1.0, handletextpad=0.3)
        interval = interval_text(result.exponent_low, result.exponent_high)
        caption = (
            f"{first}: fraction of attention mass on visual and inserted keys (mean over layers, "
            "heads and steps from the insertion on) against r', their fraction of the keys, the "
            f"same forced answers of {counted(result.samples, 'prompt')}. Dashed: equal attention "
            "to all keys (Theorem 3.2 of arXiv 2505.23558). mass ~ r'^alpha, Theil-Sen: "
            f"alpha = {result.exponent:.2f}{interval}. {second}: change of the log-odds of that "
            "mass against the untouched twin = key counts + preference."
        )
        caption += interval_note("Bars", [result.samples], "prompts", result.confidence)
        finish(panels.figure, panels.height, caption)
    return panels.figure
