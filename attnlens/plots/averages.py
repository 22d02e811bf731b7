"""Mean visual share over runs: its decay, and its rise where the image is looked at again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.measures.averages import WHOLE, Averages
from attnlens.measures.definitions import Definition, get_definition
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.labels import readable
from attnlens.plots.results import check_result, interval_note
from attnlens.plots.style import (
    BACK_FILL,
    LINES,
    LONE_COLOUR,
    REGION_FILLS,
    colours,
    style,
    width_in_inches,
)
from attnlens.text import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

HEIGHT = 2.4
"""Height of the figure without caption, in inches."""
NAME_SIZE = 6.5
"""Font size of the region's name, in points."""
LABEL_WIDTH = 34
"""Characters of a line of the label along y."""


def averages(
    result_by_name: Mapping[str, Averages], *, width: str | float = "two-column"
) -> Figure:
    """Draw mean visual share over runs with interval bands, one curve for each set of runs.

    Parameters
    ----------
    result_by_name
        What ``attnlens.measures.averages`` returns, by the name of its curve, such as a mode.
        All of one definition and region.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Each section of a run is as wide as its mean number of steps, over all sets whose runs have
        the region, which is shaded; runs without it are one section. Where some runs of a set have
        the region, those without it are left out, and the caption counts them.

    Raises
    ------
    InputError
        If it is given something else or nothing, definitions or regions differ, the width cannot
        be used, or no section has a value.
    """
    inches = width_in_inches(width)
    named = isinstance(result_by_name, Mapping) and all(isinstance(n, str) for n in result_by_name)
    if not named:
        raise InputError(
            f"{type(result_by_name).__name__} was given: give what attnlens.measures.averages "
            "returns by the names of curves, as in averages({'cot': ..., 'back': ...})"
        )
    results = dict(result_by_name)
    for one in results.values():
        check_result(one, "Averages", "attnlens.measures.averages")
    kinds = {(one.definition, one.region) for one in results.values()}
    if len(kinds) != 1:
        raise InputError(
            "give averages of one definition and region, at least one set of them"
            + (f"; these have {sorted(kinds)}" if kinds else "")
        )
    (name, region), *_ = kinds
    chosen = get_definition(name)
    if not any(np.isfinite(one.table["mean"]).any() for one in results.values()):
        raise InputError(f"nothing to draw: definition {name!r} has no value in these runs")
    edges = _edges([one.lengths for one in results.values() if one.with_region])
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        if edges:
            _shade(axes, region, *edges["inside"])
        for (label, one), look in zip(results.items(), _looks(results), strict=True):
            _draw(axes, one, edges, {**look, "label": readable(label, 30)})
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step (sections stretched to their mean lengths)")
        unit = "" if chosen.units in chosen.long_name else f" ({chosen.units})"
        axes.set_ylabel(textwrap.fill(f"{chosen.long_name}{unit}", LABEL_WIDTH))
        figure.legend(loc="outside upper center", ncols=min(len(results), 3))
        finish(figure, HEIGHT, _caption(results, chosen, region, bool(edges)))
    return figure


def _edges(lengths: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """First and last step of each section around the region: mean lengths over the sets."""
    edges: dict[str, tuple[float, float]] = {}
    start = 0.0
    for name in ("before", "inside", "after") if lengths else ():
        known = [one[name] for one in lengths if name in one]
        stop = start + (float(np.mean(known)) if known else 0.0)
        edges[name] = (start, stop)
        start = stop
    return edges


def _looks(results: Mapping[str, Averages]) -> list[dict[str, Any]]:
    """Colour and line of each set: that of the image for the first one that has the region."""
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    order = sorted(results, key=lambda name: not results[name].with_region)
    shades = [colours()["image"], LONE_COLOUR, *palette[5:]]
    looks = {
        name: {"color": shades[place % len(shades)], "ls": LINES[place % len(LINES)]}
        for place, name in enumerate(order)
    }
    return [looks[name] for name in results]


def _shade(axes: Axes, region: str, start: float, stop: float) -> None:
    fill = BACK_FILL if region == "back" else REGION_FILLS[0]
    axes.axvspan(start, stop, facecolor=fill, edgecolor="none", zorder=0, gid="region")
    axes.annotate(
        readable(region),
        ((start + stop) / 2, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 1.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=NAME_SIZE,
        color="0.25",
        gid="region name",
    )


def _draw(
    axes: Axes, one: Averages, edges: dict[str, tuple[float, float]], look: dict[str, Any]
) -> None:
    places = edges if one.with_region else {WHOLE: (0.0, one.lengths.get(WHOLE, 0.0))}
    label = look.pop("label")
    for section, (start, stop) in places.items():
        rows: pd.DataFrame = one.table[one.table["section"] == section]
        if not len(rows):
            continue
        x = start + (rows["start"] + rows["stop"]) / 2 * (stop - start)
        axes.plot(x, rows["mean"], label=label, **look)
        axes.fill_between(x, rows["low"], rows["high"], color=look["color"], alpha=0.2, linewidth=0)
        label = None  # one entry in the legend


def _caption(results: Mapping[str, Averages], chosen: Definition, region: str, parted: bool) -> str:
    counts, used = [], []
    for name, one in results.items():
        used.append(one.with_region or one.samples)
        left_out = one.samples - used[-1]
        runs = f"{readable(name, 30)}: {counted(used[-1], 'run')}"
        counts.append(runs + (f" ({left_out} without <{region}> left out)" if left_out else ""))
    per_head = ", per layer and head; then mean over heads and layers"
    level = next(iter(results.values())).confidence
    text = (
        f"{chosen.name} = {chosen.formula}{per_head if chosen.per_head else '; mean over layers'}. "
        f"Source: {chosen.source}. Lines: mean over runs. {'; '.join(counts)}."
    )
    text += interval_note("Bands", used, "runs", level)
    if parted:
        text += (
            f" Shaded: <{region}>, from the first opening to the last closing tag. Before, inside "
            "and after it, steps are placed by their part of the section."
        )
    return text
