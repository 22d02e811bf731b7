"""Curves over steps in rows, one below the other, with tokens under the steps."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from attnlens.plots.curves import (
    Curves,
    caption_text,
    draw_curves,
    label_note,
    measure_text,
    owner_text,
)
from attnlens.plots.figure import Figure, add_caption, new_figure, set_height, write_wrapped
from attnlens.plots.labels import label_size, label_steps
from attnlens.plots.spans import name_regions, tag_handles
from attnlens.plots.style import style

LEFT, RIGHT = 0.5, 0.4
"""Room beside the rows, in inches."""
TEXT_LEFT = 0.08
"""Room beside the line that names the axes, in inches."""
PAD = 0.02
"""Room between what stands above the rows, in inches."""
HEADER_SIZE = 7
"""Font size of the line that names the axes, in points."""
NAMES = 0.33
"""Room above each row for its region names."""


def draw_rows(
    curves: Curves, *, across: float, per_row: int, row_height: float, stride: int = 1
) -> Figure:
    """Draw curves in rows of the same scales, with tokens written out.

    Parameters
    ----------
    curves
        What is drawn, of all steps.
    across, row_height
        Size of the axes of a row, in inches.
    per_row
        Steps in a row, a multiple of ``stride``.
    stride
        A token is written under every ``stride``-th step.

    Returns
    -------
    Figure
        As tall as its rows ask for.
    """
    with style():
        figure = new_figure(max(3.35, LEFT + across + RIGHT), 10, constrained=False)
        rows = []
        for i in range(0, len(curves.steps), per_row):
            steps = curves.steps[i : i + per_row]
            axes = figure.add_axes((0.1, 0.1, 0.1, 0.1), gid="row")
            draw_curves(axes, curves, steps[0], steps[0] + per_row - 1)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.spines["bottom"].set_bounds(steps[0] - 0.5, steps[-1] + 0.5)
            label_steps(axes, steps, curves.labels[i : i + per_row], stride)
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
        legend = figure.legend(
            handles=(handles := curves.handles() + tag_handles(curves.regions)),
            loc="upper left",
            ncols=len(handles) if figure.get_figwidth() > 5 else 3,
            borderaxespad=0.2,
        )
        every = f" (one label in {stride} steps)" if stride > 1 else ""
        axes_named = figure.text(0, 0, "", fontsize=HEADER_SIZE, va="top")
        write_wrapped(
            axes_named,
            f"y: {measure_text(curves.share)}; x: {owner_text(curves.share)}{every}",
            figure.get_figwidth() - 2 * TEXT_LEFT,
        )
        legend_height, text_height = (
            artist.get_window_extent().height / figure.dpi for artist in (legend, axes_named)
        )
        header = legend_height + text_height + 3 * PAD
        shown = curves.labels[::stride]
        room = add_caption(figure, caption_text(curves.share) + label_note(shown))
        below = label_size(figure, shown)[1] + 0.08
        each = NAMES + row_height + below
        set_height(figure, header + each * len(rows), room)
        width, height = figure.get_size_inches()
        for k, axes in enumerate(rows):
            bottom = height - header - each * k - NAMES - row_height
            axes.set_position((LEFT / width, bottom / height, across / width, row_height / height))
            name_regions(axes, curves.regions, curves.shift)
        axes_named.set_position((TEXT_LEFT / width, 1 - (legend_height + 2 * PAD) / height))
    return figure
