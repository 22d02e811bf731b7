"""Recovery: how far each intervention lifts visual attention over its untouched twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.measures.definitions import get_definition
from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.results import check_result, interval_ends, interval_note
from attnlens.plots.style import BAR, LINES, ZERO_LINE, style, width_in_inches
from attnlens.text import shortened

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery

NAME_WIDTH = 24
"""Longest name of an intervention, in characters."""
CHARACTERS_PER_INCH = 16
"""How many characters of a legend fit in an inch."""
ROW = 0.2
"""Height of one intervention, in inches."""
HEIGHT = 2.3
"""Least height of the figure without caption, in inches."""
MARKERS = "osD^vP*X"


def recovery(
    result: Recovery,
    definition: str = "mass",
    *,
    width: str | float = "two-column",
    steps: int = 60,
) -> Figure:
    """Draw the rise of visual share by step since the trigger, and its mean with interval.

    Parameters
    ----------
    result
        What ``attnlens.recover`` returns.
    definition
        Name of a definition of `attnlens.measures`.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.
    steps
        How many steps after the trigger the left panel shows.

    Returns
    -------
    Figure
        Left (above, where it is narrow): rise over the untouched twin at the same step, mean over
        samples, inserted tokens not counted as image. Right (below): its mean over all steps from
        the trigger on with a 95% interval over samples (filled), and the same with
        inserted tokens counted (hollow).

    Raises
    ------
    InputError
        If it is given something else, the definition or the width is unknown, or no intervention
        acted.
    """
    import seaborn

    check_result(result, "Recovery", "attnlens.recover")
    chosen = get_definition(definition)
    inches = width_in_inches(width)
    found = {run: _aligned(result, definition, run, steps) for run in result.interventions}
    curves = {run: curve for run, (curve, _) in found.items() if len(curve)}
    if not curves:
        raise InputError("no intervention acted: there is no rise to draw")
    palette = seaborn.color_palette("colorblind").as_hex()
    height = max(HEIGHT, 0.7 + ROW * len(curves))
    own = result.table(definition).set_index("intervention")
    both = None
    if chosen.counts_copied:
        both = result.table(definition, include_copied=True).set_index("intervention")
    with style():
        panels = two_panels(inches, height, taller=2)
        figure, (left, right) = panels.figure, panels.axes
        for place, (run, curve) in enumerate(curves.items()):
            colour = palette[place % len(palette)]
            look = {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
            line = LINES[place % len(LINES)]
            name = shortened(run, NAME_WIDTH)
            left.plot(np.arange(len(curve)), curve, ls=line, label=name, color=colour)
            row = own.loc[run]
            at = len(curves) - 1 - place
            interval = interval_ends([row["rise"]], [row["rise_low"]], [row["rise_high"]])
            right.errorbar(row["rise"], at, xerr=interval, **BAR, **look)
            if both is not None:
                right.plot(both.loc[run, "rise"], at, ls="", mfc="none", **look)
        left.axhline(0, **ZERO_LINE)
        right.axvline(0, **ZERO_LINE)
        longest = max(len(shortened(run, NAME_WIDTH)) for run in curves)
        columns = max(1, int(inches * CHARACTERS_PER_INCH / (longest + 8)))
        figure.legend(handles=left.lines[: len(curves)], loc="outside upper center", ncols=columns)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlabel("steps since the trigger")
        left.set_ylabel(f"rise ({chosen.units})")
        right.set_yticks(range(len(curves)), [shortened(run, NAME_WIDTH) for run in curves][::-1])
        right.xaxis.set_major_locator(MaxNLocator(4 if panels.stacked else 6))
        right.set_xlabel(f"mean rise ({chosen.units})")
        samples = result.data.sizes["sample"]
        acted = own.loc[list(curves), "rise_samples"].tolist()
        behind = [int(count) for run in curves for count in found[run][1]]
        caption = (
            "Rise of visual share under each intervention over the untouched twin, with the same "
            f"tokens forced; definition {definition}: {chosen.formula}. Mean over the samples in "
            f"which it acted ({_range(acted)} of {samples}); by step, over those whose answer goes "
            f"on so long ({_range(behind)}). Filled: inserted tokens not counted as image; hollow: "
            "counted."
        )
        caption += interval_note("Bars", acted, "samples")
        finish(figure, panels.height, caption)
    return figure


def _range(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def _aligned(
    result: Recovery, definition: str, run: str, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean rise by step since the trigger, as long as some sample has one, and over how many."""
    one = result.data.sel(run=run)
    rises = one["rise"].sel(definition=definition).values
    table = []
    for sample, first in enumerate(one["first_step"].values):
        if np.isfinite(first):
            row = rises[sample, int(first) : int(first) + steps]
            table.append(np.pad(row, (0, steps - len(row)), constant_values=np.nan))
    if not table:
        return np.zeros(0), np.zeros(0)
    stacked = np.array(table)
    known = np.isfinite(stacked).any(0)
    stop = int(np.flatnonzero(known)[-1]) + 1 if known.any() else 0
    counts = np.isfinite(stacked[:, :stop]).sum(0)
    sums = np.nansum(stacked[:, :stop], 0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts[counts > 0]
