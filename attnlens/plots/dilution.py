"""Dilution: mass against the fraction of visual keys, and what a change is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullLocator

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

if TYPE_CHECKING:
    from attnlens.measures.theorems.log_odds import Change
    from attnlens.measures.theorems.result import Dilution

HEIGHT = 2.5
"""Height of the figure without caption, in inches."""
MOST_RUNS = 60
"""At most this many runs are drawn as separate lines."""
BINS = 12
"""Bins of the fraction of visual keys, even on its logarithm."""
TERMS = ("log_odds", "counts", "preference")


def dilution(result: Dilution, *, width: str | float = "two-column") -> Figure:
    """Draw mass against the fraction of visual keys, and the change of log-odds split in two.

    Parameters
    ----------
    result
        What ``attnlens.measures.dilution`` returns.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow), on logarithms: mass (mean over layers and heads) of every
        run (at most 60, thin) and of all steps, in bins of the fraction, and the line of equal
        attention to all keys, mass = r.
        Right: change of the log-odds between the two windows, and its terms, with intervals over
        runs, with the sink among the keys and without.

    Raises
    ------
    InputError
        If it is given something else, the width cannot be used, or no step has mass on the image.
    """
    check_result(result, "Dilution", "attnlens.measures.dilution")
    inches = width_in_inches(width)
    if not (result.curves["mass"] > 0).any():
        raise InputError("nothing to draw: no step has mass on the image")
    with style():
        panels = two_panels(inches, HEIGHT, taller=1.8, ratios=(1.2, 1))
        _draw_mass(panels.axes[0], result)
        _draw_change(panels.axes[1], result)
        first, second = panels.places
        interval = interval_text(result.exponent_low, result.exponent_high)
        between = ", from {} to {}".format(*result.between) if result.between[0] else ""
        runs = "the one run (thin)"
        if result.samples > 1:
            runs = f"each of {result.samples} runs (thin) and all their steps"
        copied = " and inserted" if result.settings["include_copied"] else ""
        caption = (
            f"{first}: fraction of attention mass on the image (mass: sum over visual{copied} "
            "keys, mean over layers and heads) against r, the fraction of keys that is visual, in "
            f"{BINS} bins of r: {runs}; the answer grows from right to left. Dashed: mass = r, "
            "equal attention to all keys (Theorem 3.1 of arXiv 2505.23558). mass ~ r^alpha, "
            f"Theil-Sen: alpha = {result.exponent:.2f}{interval}. {second}: change of the log-odds "
            f"of visual mass{between}, = key counts + preference, exact at each step, layer and "
            "head."
        )
        caption += interval_note("Bars", [result.samples], "runs", result.settings["confidence"])
        finish(panels.figure, panels.height, caption)
    return panels.figure


def _draw_mass(axes: Any, result: Dilution) -> None:
    curves = result.curves[result.curves["mass"] > 0]
    blue = colours()["image"]
    edges = np.geomspace(
        curves["key_share"].min(), curves["key_share"].max() * (1 + 1e-9), BINS + 1
    )
    place = np.digitize(curves["key_share"], edges)
    columns = ["key_share", "mass"]
    by_run = curves.groupby(["sample", place])[columns].mean()
    for sample in curves["sample"].unique()[:MOST_RUNS]:
        run = by_run.loc[sample]
        axes.plot(run["key_share"], run["mass"], color=blue, lw=0.5, alpha=0.35)
    binned = curves.groupby(place)[columns].mean()
    axes.plot(binned["key_share"], binned["mass"], color=blue, marker="o", label="mass, mean")
    ends = np.array([edges[0], edges[-1]])
    axes.plot(ends, ends, color=LONE_COLOUR, ls=DASHED, label="mass = r")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(_ticks(edges[0], edges[-1]))
    axes.set_yticks(_ticks(min(by_run["mass"].min(), ends[0]), max(by_run["mass"].max(), ends[1])))
    axes.set_xlabel("r (fraction of keys)")
    axes.set_ylabel("visual mass (fraction)")
    axes.legend(loc="best")


def _ticks(low: float, high: float) -> list[float]:
    """Up to four numbers of two digits along a logarithmic axis."""
    return sorted({float(f"{value:.2g}") for value in np.geomspace(low, high, 4)})


def _draw_change(axes: Any, result: Dilution) -> None:
    looks: tuple[tuple[str, Change, dict[str, Any]], ...] = (
        ("all keys", result.change, {"marker": "o"}),
        ("without the sink", result.change_without_sink, {"marker": "s", "mfc": "white"}),
    )
    for shift, (label, change, look) in zip((0.12, -0.12), looks, strict=True):
        terms = [getattr(change, name) for name in TERMS]
        means, lows, highs = np.array([(term.mean, term.low, term.high) for term in terms]).T
        rows = np.arange(len(TERMS))[::-1] + shift
        axes.errorbar(
            means,
            rows,
            xerr=interval_ends(means, lows, highs),
            color=LONE_COLOUR,
            label=label,
            **BAR,
            **look,
        )
    axes.axvline(0, **ZERO_LINE)
    axes.set_yticks(range(len(TERMS)), ["preference", "key counts", "log-odds"])
    axes.set_ylim(-0.5, len(TERMS) - 0.5 + 0.6)
    axes.set_xlabel("change (natural log)")
    axes.legend(loc="upper center", ncols=2, columnspacing=1.0, handletextpad=0.3)
