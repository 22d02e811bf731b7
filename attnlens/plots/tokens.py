"""Every token of a response with its attention, in stacked rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.plots.curves import (
    Curves,
    caption_text,
    draw_curves,
    label_note,
    measure_text,
    owner_text,
    read_curves,
)
from attnlens.plots.figure import Figure, add_caption, new_figure, set_height, write_wrapped
from attnlens.plots.regions import name_regions, tag_handles
from attnlens.plots.style import LABEL_SIZE, WIDTHS, style

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

INCHES_PER_STEP = 0.12
"""Room of one step along x: what an upright token label needs, and a little."""
ROW = 0.8
"""Height of the axes of a row, in inches."""
MOST_ACROSS = 5
"""Entries of a legend that fit beside each other in two columns' width."""
LEFT, RIGHT = 0.5, 0.4
"""Room at the sides of the rows, in inches."""
TEXT_LEFT = 0.08
"""Room next to the line that names the axes, in inches."""
PAD = 0.02
"""Room between the texts above the rows, in inches."""
HEADER_SIZE = 7
"""Font size of the line that names the axes, in points."""
NAMES = 0.33
"""Room above each row for its region names, in inches."""


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


def draw_rows(
    curves: Curves, *, across: float, per_row: int, row_height: float, stride: int = 1
) -> Figure:
    """Draw curves in rows of the same scales, with a token under every ``stride``-th step.

    The axes of a row are ``across`` by ``row_height`` inches and hold ``per_row`` steps, a multiple
    of ``stride``. The figure is as tall as its rows ask for.
    """
    with style():
        figure = new_figure(max(WIDTHS["one-column"], LEFT + across + RIGHT), 10, constrained=False)
        rows = []
        for i in range(0, len(curves.steps), per_row):
            steps = curves.steps[i : i + per_row]
            axes = figure.add_axes((0.1, 0.1, 0.1, 0.1), gid="row")
            draw_curves(axes, curves, steps[0], steps[0] + per_row - 1)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.spines["bottom"].set_bounds(steps[0] - 0.5, steps[-1] + 0.5)
            axes.set_xticks(steps[::stride], curves.labels[i : i + per_row : stride])
            axes.tick_params(axis="x", labelrotation=90, labelsize=LABEL_SIZE, length=1.5, pad=1.5)
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
        handles = curves.handles() + tag_handles(curves.regions)
        legend = figure.legend(
            handles=handles,
            loc="upper left",
            ncols=min(len(handles), MOST_ACROSS) if figure.get_figwidth() > 5 else 3,
            borderaxespad=0.2,
        )
        every = f" (one label in {stride} steps)" if stride > 1 else ""
        header = figure.text(0, 0, "", fontsize=HEADER_SIZE, va="top")
        write_wrapped(
            header,
            f"y: {measure_text(curves.share)}; x: {owner_text(curves.share)}{every}",
            figure.get_figwidth() - 2 * TEXT_LEFT,
        )
        legend_height, text_height = (
            artist.get_window_extent().height / figure.dpi for artist in (legend, header)
        )
        above = legend_height + text_height + 3 * PAD
        shown = curves.labels[::stride]
        room = add_caption(figure, caption_text(curves.share) + label_note(shown))
        each = NAMES + row_height + _label_room(figure, shown)
        set_height(figure, above + each * len(rows), room)
        width, height = figure.get_size_inches()
        for k, axes in enumerate(rows):
            bottom = height - above - each * k - NAMES - row_height
            axes.set_position((LEFT / width, bottom / height, across / width, row_height / height))
            name_regions(axes, curves.regions, curves.shift)
        header.set_position((TEXT_LEFT / width, 1 - (legend_height + 2 * PAD) / height))
    return figure


def _label_room(figure: Figure, labels: Sequence[str]) -> float:
    """Room below a row for the tallest of some upright labels, in inches."""
    probe = figure.text(0, 0, "", rotation=90, fontsize=LABEL_SIZE)
    heights = [0.0]
    for label in set(labels):
        probe.set_text(label)
        heights.append(probe.get_window_extent().height)
    probe.remove()
    return float(np.max(heights) / figure.dpi) + 0.08
