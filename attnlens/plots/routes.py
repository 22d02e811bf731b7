"""ROUTE percentages: what a larger part of the image brings back, and what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.definitions import Definition, get_definition
from attnlens.plots.figure import Figure, finish, fix_positions, new_figure
from attnlens.plots.results import check_result, interval_ends, interval_note
from attnlens.plots.style import (
    BAR,
    DASHED,
    DOTTED,
    LONE_COLOUR,
    NARROW,
    ZERO_LINE,
    colours,
    style,
    width_in_inches,
)

if TYPE_CHECKING:
    import pandas as pd

    from attnlens.experiments.recovery import Recovery

HEIGHT = 2.2
"""Height of a row of panels without caption, in inches."""
NARROW_PANEL = 1.55
"""Height of a panel there, in inches."""
LABEL_WIDTH = 22
"""Characters of a line of a label along y."""
UNTOUCHED_COLOUR = "0.65"


def routes(
    result: Recovery,
    percents: Mapping[str, float],
    definition: str = "mass",
    *,
    width: str | float = "two-column",
) -> Figure:
    """Draw recovery, answers and cost over the percentage of visual tokens inserted again.

    Parameters
    ----------
    result
        What ``attnlens.recover`` returns, of interventions such as ``Route(percent=25)``.
    percents
        For each intervention to draw, by its name in the result: its percentage, 0 to 100, no two
        alike. (``Copy`` is 100.)
    definition
        Name of a definition of `attnlens.measures`.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Three panels over the percentage: mean rise of visual share over the untouched twin,
        inserted tokens not counted as image (filled) and counted (hollow; a definition that cannot
        count them has one line); fraction of right answers, with that of the untouched runs dashed,
        or of changed answers where no true answer is known; inserted tokens. Bars: 95% intervals
        over samples (Hall's; of answers Wilson's).

    Raises
    ------
    InputError
        If it is given something else, the definition, the width or an intervention is unknown, a
        percentage is out of range or comes twice, none is given, or none of the interventions
        acted.
    """
    chosen = get_definition(definition)
    check_result(result, "Recovery", "attnlens.recover")
    inches = width_in_inches(width)
    shares = _checked_percents(result, percents)
    names = sorted(shares, key=lambda name: shares[name])
    places = [shares[name] for name in names]
    own = result.table(definition).set_index("intervention").loc[names]
    if not (own["samples"] > 0).any():
        raise InputError(f"nothing to draw: none of {', '.join(names)} acted in any sample")
    both = None
    if chosen.counts_copied:
        both = result.table(definition, include_copied=True).set_index("intervention").loc[names]
    with style():
        stacked = inches < NARROW
        height = 3 * NARROW_PANEL if stacked else HEIGHT
        figure = new_figure(inches, height)
        shape = (3, 1) if stacked else (1, 3)
        rise, answers, cost = figure.subplots(*shape, sharex=True)
        _draw_rises(rise, places, own, both, chosen)
        _draw_answers(answers, places, own)
        cost.plot(places, own["inserted"], color=LONE_COLOUR, marker="o")
        cost.set_ylim(bottom=0)
        cost.set_ylabel("inserted tokens")
        for axes in (cost,) if stacked else (rise, answers, cost):
            axes.set_xlabel("visual tokens inserted (%)")
        figure.align_ylabels()
        finish(figure, height, _caption(result, names, own, chosen, stacked))
        fix_positions(figure)
    return figure


def _checked_percents(result: Recovery, percents: Any) -> dict[str, float]:
    if not isinstance(percents, Mapping) or not percents:
        raise InputError(
            f"percents is {percents!r}: give a mapping from interventions to percentages, such as "
            "{'route:25': 25, 'copy': 100}"
        )
    there = result.interventions
    for name, percent in percents.items():
        if name not in there:
            raise InputError(f"no intervention {name!r}: there are {', '.join(there)}")
        number = isinstance(percent, Real) and not isinstance(percent, bool)
        if not number or not 0 <= percent <= 100:
            raise InputError(f"the percentage of {name!r} is {percent!r}: give 0 to 100")
        alike = [other for other in percents if other != name and percents[other] == percent]
        if alike:
            raise InputError(
                f"{name!r} and {alike[0]!r} have one percentage, {percent}: leave one of them out"
            )
    return {name: float(percent) for name, percent in percents.items()}


def _draw_rises(
    axes: Any,
    places: list[float],
    own: pd.DataFrame,
    both: pd.DataFrame | None,
    chosen: Definition,
) -> None:
    colour = colours()["image"]
    axes.axhline(0, **ZERO_LINE)
    _draw_series(axes, places, own, "rise", color=colour, label="not counted")
    if both is not None:
        look = {"ls": DOTTED, "mfc": "white", "label": "counted"}
        _draw_series(axes, places, both, "rise", color=colour, **look)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
        axes.legend(
            loc="upper center",
            ncols=2,
            title="inserted tokens",
            title_fontsize=7,
            columnspacing=1.0,
            handletextpad=0.4,
        )
    axes.set_ylabel(textwrap.fill(f"rise ({chosen.units})", LABEL_WIDTH))


def _draw_answers(axes: Any, places: list[float], own: pd.DataFrame) -> None:
    if own["right"].notna().any():
        _draw_series(axes, places, own, "right", color=LONE_COLOUR, label="ROUTE")
        untouched = own["right_untouched"].iloc[0]
        axes.axhline(
            untouched,
            color=UNTOUCHED_COLOUR,
            ls=DASHED,
            zorder=3,  # seen on a line at the same height, too
            label="untouched",
        )
        axes.legend(loc="upper center", ncols=2, columnspacing=1.0, handletextpad=0.4)
        axes.set_ylabel("right answers\n(fraction)")
        axes.set_ylim(-0.03, 1.35)  # room for the legend
    else:
        _draw_series(axes, places, own, "answer_changed", color=LONE_COLOUR)
        axes.set_ylabel("changed answers\n(fraction)")
        axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])


def _draw_series(
    axes: Any, places: list[float], table: pd.DataFrame, name: str, **look: Any
) -> None:
    """Draw a column of means as a line, and the interval of each as a bar."""
    ends = interval_ends(table[name], table[f"{name}_low"], table[f"{name}_high"])
    known = table[name].where(table[f"{name}_low"].notna())
    axes.errorbar(places, known, yerr=ends, ecolor=look["color"], **BAR)
    axes.plot(places, table[name], **{"marker": "o", "ms": 3.5, **look})


def _caption(
    result: Recovery, names: list[str], own: pd.DataFrame, chosen: Definition, stacked: bool
) -> str:
    total = result.data.sizes["sample"]
    acted = sorted({int(count) for count in own["rise_samples"]})
    within = f"{acted[0]}" if len(acted) == 1 else f"{acted[0]} to {acted[-1]}"
    first, second, third = ("Top", "Middle", "Bottom") if stacked else ("Left", "Middle", "Right")
    known = int(np.isfinite(result.data["right"].sel(run=names).values).all(1).sum())
    counted = "counted as image or not" if chosen.counts_copied else "not counted as image"
    answers = (
        f"{known} samples whose true answer is known; dashed: untouched"
        if known
        else "no true answer is known: fraction of answers that differ from the untouched ones"
    )
    kib = own["cache_bytes"] / 1024
    cost = (
        f"each takes {result.data.attrs['cache_bytes_per_token']:,} bytes of cache, "
        f"{kib.min():,.0f} to {kib.max():,.0f} KiB in all"
    )
    bars = interval_note("Bars", own["rise_samples"], "samples")
    if own["right_low" if known else "answer_changed_low"].notna().any():
        bars += " Bars of answers: Wilson's 95% interval."
    return (
        f"Visual tokens chosen by attention and inserted again (ROUTE, arXiv 2505.23558). {first}: "
        "rise of visual share over the untouched twin, with the same tokens forced, inserted "
        f"tokens {counted}; definition {chosen.name}: {chosen.formula}. Mean over the samples in "
        f"which it acted ({within} of {total}). {second}: answers; {answers}. {third}: inserted "
        f"tokens, mean over samples; {cost}.{bars}"
    )
