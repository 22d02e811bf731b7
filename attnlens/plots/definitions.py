"""Definitions of visual attention side by side on the same runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.agreement import Agreement, agreement
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.results import interval_text
from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.style import LABEL_SIZE, LINES, ZERO_LINE, style, width_in_inches
from attnlens.text import counted

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

HEIGHT = 2.9
"""Height of the figure without caption, in inches."""
GAP = 0.06
"""Room between stacked panels, as a fraction of their height."""
SIX_LINES: tuple[Any, ...] = (*LINES, (0, (5, 1, 1, 1, 1, 1)))
THINNEST, THICKER = 0.9, 0.6
"""Width of the last curve and how much more each before it has, in points: of curves that coincide,
all are seen."""
DIVERGING = "PuOr_r"
"""Colours that stay apart for colour-blind readers."""
SPAN = 1.4
"""Correlation at either end of the colours: beyond 1, so that black numbers stay readable."""


def definitions(
    traces: Agreement | TraceLike | Iterable[TraceLike],
    *,
    names: Sequence[str] | None = None,
    width: str | float = "two-column",
) -> Figure:
    """Draw all definitions on the same runs: their curves, and how well they agree.

    Parameters
    ----------
    traces
        One run or several; or what ``attnlens.measures.agreement`` gave for them.
    names
        Two or more names of definitions; by default all of them. Of traces only.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): each definition over the position in the answer, in 20
        bins, divided by its own mean over the run; mean over runs. Right: Spearman rank
        correlation over steps of each definition with each other, mean over runs. Both are what
        ``attnlens.measures.agreement`` gives.

    Raises
    ------
    InputError
        If no trace is given or one has no visual keys, a name is unknown or comes twice, fewer than
        two are given, the width cannot be used, or no definition has a value.
    """
    inches = width_in_inches(width)
    found = traces if isinstance(traces, Agreement) else agreement(traces, names=names)
    if not np.isfinite(found.curves).any():
        raise InputError("nothing to draw: no definition has a value in these traces")
    with style():
        panels = two_panels(inches, HEIGHT, gap=GAP)
        figure, (left, right) = panels.figure, panels.axes
        _draw_curves(left, found)
        _draw_correlations(right, found)
        columns = math.floor(inches / 1.1)
        figure.legend(handles=left.lines[1:], loc="outside upper center", ncols=columns)
        finish(figure, panels.height, _caption(found, *panels.places))
    return figure


def _draw_curves(axes: Any, found: Agreement) -> None:
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    axes.axhline(1, **ZERO_LINE)
    centres = (found.bins[:-1] + found.bins[1:]) / 2
    for i, (name, curve) in enumerate(zip(found.names, found.curves, strict=True)):
        place = list(DEFINITIONS).index(name)
        axes.plot(
            centres,
            curve,
            color=palette[place % len(palette)],
            ls=SIX_LINES[place % len(SIX_LINES)],
            lw=THINNEST + THICKER * (len(found.names) - 1 - i),
            label=name,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the answer (fraction of the run)")
    axes.set_ylabel("share / its mean over the run")


def _draw_correlations(axes: Any, found: Agreement) -> None:
    values = found.correlations
    axes.imshow(values, cmap=DIVERGING, vmin=-SPAN, vmax=SPAN, interpolation="nearest")
    places = range(len(found.names))
    axes.set_xticks(places, found.names, rotation=90, fontsize=LABEL_SIZE)
    axes.set_yticks(places, found.names, fontsize=LABEL_SIZE)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, j in np.ndindex(values.shape):
        known = np.isfinite(values[i, j])
        axes.text(
            j,
            i,
            f"{values[i, j]:.2f}".replace("-", "\N{MINUS SIGN}") if known else "\N{EN DASH}",
            ha="center",
            va="center",
            fontsize=LABEL_SIZE,
        )
    axes.set_title("Spearman rank correlation over steps")


def _runs(found: Agreement) -> str:
    """Say how many runs the correlations are over, unless it is all of them."""
    apart = found.runs[np.triu_indices(len(found.names), 1)]
    known = apart[apart > 0]
    if not len(known) or known.min() == found.samples:
        return "runs"
    most = f" to {known.max()}" if known.max() > known.min() else ""
    return f"the runs that have one ({known.min()}{most})"


def _caption(found: Agreement, first: str, second: str) -> str:
    formulas = "; ".join(f"{name} = {DEFINITIONS[name].formula}" for name in found.names)
    text = (
        f"{first}: visual share by position in the answer, divided by its own mean over the run; "
        f"{len(found.bins) - 1} bins, mean over {counted(found.samples, 'run')}; curves that "
        f"coincide lie inside each other. {second}: rank correlation over the steps of a run, "
        f"values of the same forward pass, mean over {_runs(found)} (\N{EN DASH}: undefined). "
    )
    pair = found.least_alike()
    if pair is not None:
        ends = interval_text(found.low[pair], found.high[pair])
        text += (
            f"Least alike: {found.names[pair[0]]} and {found.names[pair[1]]}, "
            f"rho = {found.correlations[pair]:.2f}{ends}"
            + (f" ({found.confidence:.0%} interval over runs)" if ends else "")
            + ". "
        )
    return f"{text}Definitions, reduced over heads and layers: {formulas}."
