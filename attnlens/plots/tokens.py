"""Every token of a response with its attention, in stacked rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.plots.curves import (
    caption_text,
    draw_curves,
    label_note,
    measure_text,
    owner_text,
    read_curves,
)
from attnlens.plots.labels import label_size, label_steps
from attnlens.plots.spans import name_regions, tag_handles
from attnlens.plots.style import Figure, add_caption, new_figure, set_height, style

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

INCHES_PER_STEP = 0.12
"""Room of one step along x: what an upright token label needs, and a little."""
LEFT, RIGHT = 0.5, 0.4
"""Room beside the rows."""
HEADER = 0.35
"""Room above the first row, for the legend and the name of the measure."""
NAMES = 0.33
"""Room above each row for its region names."""
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
    with style():
        across = per_row * INCHES_PER_STEP
        figure = new_figure(max(3.35, LEFT + across + RIGHT), 10, constrained=False)
        rows = []
        for i in range(0, len(curves.steps), per_row):
            steps = curves.steps[i : i + per_row]
            axes = figure.add_axes((0.1, 0.1, 0.1, 0.1), gid="row")
            draw_curves(axes, curves, steps[0], steps[0] + per_row - 1)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.spines["bottom"].set_bounds(steps[0] - 0.5, steps[-1] + 0.5)
            label_steps(axes, steps, curves.labels[i : i + per_row])
            axes.text(
                1.01,
                0.5,
                f"steps {steps[0]}–{steps[-1]}",
                transform=axes.transAxes,
                rotation=270,
                va="center",
                fontsize=6.5,
                color="0.3",
            )
            rows.append(axes)
        figure.legend(
            handles=(handles := curves.handles() + tag_handles(curves.regions)),
            loc="upper left",
            ncols=len(handles) if figure.get_figwidth() > 5 else 3,
            borderaxespad=0.2,
        )
        room = add_caption(figure, caption_text(curves.share) + label_note(curves.labels))
        below = label_size(figure, curves.labels)[1] + 0.08
        each = NAMES + ROW + below
        set_height(figure, HEADER + each * len(rows), room)
        width, height = figure.get_size_inches()
        for k, axes in enumerate(rows):
            bottom = height - HEADER - each * k - NAMES - ROW
            axes.set_position((LEFT / width, bottom / height, across / width, ROW / height))
            name_regions(axes, curves.regions, curves.shift)
        figure.text(
            0.08 / width,
            1 - (HEADER - 0.02) / height,
            f"y: {measure_text(curves.share)}; x: {owner_text(curves.share)}",
            fontsize=7,
        )
        figure.draw_without_rendering()
    return figure
