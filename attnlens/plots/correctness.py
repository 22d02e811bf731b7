"""Attention to the image of right and of wrong answers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.measures.correctness import ALL, HIGHER, LOWER, NEGLIGIBLE, NONE, Correctness
from attnlens.measures.definitions import DEFINITIONS, get_definition
from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.labels import readable
from attnlens.plots.results import check_result, interval_ends
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
    import pandas as pd
    from matplotlib.axes import Axes

HEIGHT = 3.0
"""Height of the figure without caption, in inches."""
MARKERS = "osD^vPX"
"""Marks of regions, used in order."""
PLACES = (7, 2, 1, 4, 9, 5, 6)
"""Indices of the palette for regions, in the same order: none is that of right or wrong answers."""
MOST_REGIONS = len(MARKERS)


def correctness(
    result: Correctness, definition: str = "mass", *, width: str | float = "two-column"
) -> Figure:
    """Draw how attention to the image of right answers differs from that of wrong ones.

    Parameters
    ----------
    result
        What ``attnlens.measures.correctness`` returns.
    definition
        Definition of the curves by step.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): for each definition and region, the probability that a
        right answer attends to the image more than a wrong one, with its interval; the band around
        0.5 is what counts as no relation. Right: mean share by step of right and of wrong answers.

    Raises
    ------
    InputError
        If it is given something else, the definition is unknown or not in the result, or the width
        cannot be used.
    """
    inches = width_in_inches(width)
    check_result(result, "Correctness", "attnlens.measures.correctness")
    chosen = get_definition(definition)
    if definition not in set(result.regions["definition"]):
        known = ", ".join(dict.fromkeys(result.regions["definition"]))
        raise InputError(f"definition {definition!r} is not in this result: it has {known}")
    with style():
        panels = two_panels(inches, HEIGHT, ratios=(1.1, 1))
        left, right = panels.axes
        shown = _draw_regions(left, result.regions)
        steps = result.steps[result.steps["definition"] == definition]
        _draw_steps(right, steps)
        unit = "" if chosen.units in chosen.long_name else f" ({chosen.units})"
        right.set_ylabel(textwrap.fill(f"{chosen.long_name}{unit}", 34))
        handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        panels.figure.legend(
            handles=handles, loc="outside upper center", ncols=max(2, int(inches / 0.95))
        )
        finish(panels.figure, panels.height, _caption(result, definition, shown, panels.places))
    return panels.figure


def _draw_regions(axes: Axes, table: pd.DataFrame) -> list[str]:
    """Draw an interval for each definition and region; return the regions that are shown."""
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    most = table.groupby("region")["right_runs"].max().sort_values(ascending=False, kind="stable")
    regions = [ALL, *(name for name in most.index if name != ALL)][:MOST_REGIONS]
    names = [name for name in DEFINITIONS if name in set(table["definition"])]
    axes.axvspan(0.5 - NEGLIGIBLE, 0.5 + NEGLIGIBLE, facecolor="0.93", edgecolor="none", zorder=0)
    axes.axvline(0.5, **ZERO_LINE)
    for i, region in enumerate(regions):
        rows = table[table["region"] == region].set_index("definition")
        rows = rows.loc[[name for name in names if name in rows.index]]
        offset = (i - (len(regions) - 1) / 2) * 0.8 / len(regions)
        axes.errorbar(
            rows["superiority"],
            [names.index(name) + offset for name in rows.index],
            xerr=interval_ends(
                rows["superiority"], rows["superiority_low"], rows["superiority_high"]
            ),
            marker=MARKERS[i],
            markersize=3,
            elinewidth=0.8,
            color=LONE_COLOUR if region == ALL else palette[PLACES[i]],
            label=readable(region),
            **{**BAR, "capsize": 1},
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("P(right answer attends more than wrong one)")
    return regions


def _draw_steps(axes: Axes, steps: pd.DataFrame) -> None:
    looks: dict[str, dict[str, Any]] = {
        "right": {"color": colours()["image"], "ls": "-"},
        "wrong": {"color": colours()["opening tag"], "ls": DASHED},
    }
    for name, look in looks.items():
        if len(steps):
            axes.plot(steps["step"], steps[f"{name}_mean"], label=f"{name} answers", **look)
            axes.fill_between(
                steps["step"],
                steps[f"{name}_low"],
                steps[f"{name}_high"],
                color=look["color"],
                alpha=0.2,
                linewidth=0,
            )
    if not len(steps):
        axes.text(0.5, 0.5, "too few answers", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")


def _caption(
    result: Correctness, definition: str, shown: list[str], places: tuple[str, str]
) -> str:
    found = result.regions["relation"].value_counts()
    rows = len(result.regions)
    counts = {kind: int(found.get(kind, 0)) for kind in (HIGHER, LOWER, NONE)}
    left_out = len(set(result.regions["region"])) - len(shown)
    known = np.isfinite(result.regions["superiority_low"]).any()
    first, second = places
    text = (
        f"{result.right} right and {result.wrong} wrong answers. {first}: probability that the "
        "mean share of a right answer over the steps of a region is the higher one, ties counted "
        "half (Mann-Whitney; 0.5: neither)."
    )
    if known:
        text += f" Bars: {result.confidence:.0%} interval (Newcombe 2006)."
    text += (
        f" Grey: within {NEGLIGIBLE} of 0.5. Of {rows} comparisons, attention is higher when "
        f"right in {counts[HIGHER]} and lower in {counts[LOWER]} (Holm-adjusted p < "
        f"{1 - result.confidence:.2g}); in {counts[NONE]} the interval lies within the grey: no "
        f"relation; in {rows - sum(counts.values())} it is not known."
    )
    if left_out:
        text += f" {left_out} rarer regions are left out."
    chosen = get_definition(definition)
    return (
        f"{text} {second}: mean over answers by step, where eight right and eight wrong ones are "
        f"that long, with {result.confidence:.0%} intervals; {definition} = {chosen.formula}. "
        f"Source: {chosen.source}."
    )
