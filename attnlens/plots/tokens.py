"""Every token of a response with its attention, in stacked rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnlens.errors import InputError
from attnlens.plots.curves import read_curves
from attnlens.plots.figure import Figure
from attnlens.plots.rows import draw_rows

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

INCHES_PER_STEP = 0.12
"""Room of one step along x: what an upright token label needs, and a little."""
ROW = 0.8
"""Height of the axes of a row."""


def tokens(trace: TraceLike, definition: str = "look-back", *, per_row: int = 50) -> Figure:
    """Draw the curves of `trend` in stacked rows, with every token written out.

    Parameters
    ----------
    trace
        The record of one generation.
    definition
        Name of a definition of `attnlens.measures`; labels are the tokens that own its steps.
    per_row
        Steps in a row, 1 to 500. All rows have the same scales.

    Returns
    -------
    Figure
        A Matplotlib figure, as tall as its rows ask for (under 2 inches each).

    Raises
    ------
    InputError
        If the definition is unknown, ``per_row`` cannot be used, or the trace has no visual keys
        or no step to draw.
    """
    if not isinstance(per_row, int) or isinstance(per_row, bool) or not 1 <= per_row <= 500:
        raise InputError(f"per_row is {per_row!r}: give a number of steps from 1 to 500")
    curves = read_curves(trace, definition)
    return draw_rows(curves, across=per_row * INCHES_PER_STEP, per_row=per_row, row_height=ROW)
