"""Theorem 3.2: visual mass against the fraction of keys that insertions make visual."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.given import check_result
from attnlens.plots.intervals import interval_ends, interval_note
from attnlens.plots.style import LONE_COLOUR, NARROW, colours, style, width_in_inches

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
        stacked = inches < NARROW
        height = HEIGHT * (1.9 if stacked else 1)
        figure = new_figure(inches, height)
        left, right = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
        share, mass = table["key_share"].to_numpy(), table["mass"].to_numpy()
        ends = interval_ends(mass, table["mass_low"], table["mass_high"])
        left.errorbar(share, mass, yerr=ends, color=blue, marker="o", capsize=2, label="measured")
        line = np.array([share.min(), share.max()])
        left.plot(line, line, color=LONE_COLOUR, ls=(0, (4, 1.5)), label="mass = r'")
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
                ls="",
                capsize=2,
                color=colour,
                marker=marker,
                mfc=colour if marker == "o" else "white",
                label=label,
            )
        right.axvline(0, color="0.6", linewidth=0.6, zorder=0)
        right.set_yticks(rows, changed["insertion"])
        right.set_ylim(-0.5, len(changed) - 0.5 + 0.9)
        right.set_xlabel("change of log-odds (natural log)")
        right.legend(loc="upper center", ncols=2, columnspacing=1.0, handletextpad=0.3)
        low, high = result.exponent_low, result.exponent_high
        interval = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
        caption = (
            f"{'Above' if stacked else 'Left'}: fraction of attention mass on visual and inserted "
            "keys (mean over layers, heads and steps from the insertion on) against r', their "
            f"fraction of the keys, the same forced answers of {result.samples} "
            f"prompt{'' if result.samples == 1 else 's'}. Dashed: "
            "equal attention to all keys (Theorem 3.2 of arXiv 2505.23558). mass ~ r'^alpha, "
            f"Theil-Sen: alpha = {result.exponent:.2f}{interval}. "
            f"{'Below' if stacked else 'Right'}: change of the log-odds of that mass against the "
            "untouched twin = key counts + preference."
        )
        caption += interval_note("Bars", [result.samples], "prompts", result.confidence)
        finish(figure, height, caption)
    return figure
