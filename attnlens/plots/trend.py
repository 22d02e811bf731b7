"""The trend: how much each step attends to the image, the query text and the generated text."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from attnlens.plots.curves import (
    Curves,
    caption_text,
    draw_curves,
    measure_text,
    owner_text,
    read_curves,
)
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.regions import name_regions, tag_handles
from attnlens.plots.style import WIDTHS, style, width_in_inches
from attnlens.plots.tokens import LEFT, MOST_ACROSS, RIGHT, draw_rows

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

HEIGHT = 2.6
"""Height of the figure without caption, in inches."""
INCHES_PER_LABEL = 0.11
"""Room that one upright token label takes: some 50 fit across a page."""
MOST_ROWS = 4
"""Rows with token labels that fit on a page."""
ROW, LONE_ROW = 1.0, 1.8
"""Height of the axes of a row with token labels, and of one that is the only one, in inches."""


def trend(
    trace: TraceLike,
    definition: str = "look-back",
    *,
    tokens: bool = False,
    steps: tuple[int, int] | None = None,
    items: bool = False,
    width: str | float = "two-column",
) -> Figure:
    """Draw three curves over steps: attention to the image, the query text, the generated text.

    Regions of the response are shaded, ``<back>`` in yellow with its opening and closing tag as
    lines. The caption states the definition. A definition that speaks of the image alone gives
    one curve.

    Parameters
    ----------
    trace
        The record of one generation.
    definition
        Name of a definition of `attnlens.measures`. It decides the unit, and whether a step
        belongs to its query token (the one fed in) or its predicted token; regions and labels
        follow it.
    tokens
        Label the step axis with tokens, in rows of as many labels as fit the width (54 in two
        columns), at most four. Where not every token fits, every n-th is written; `tokens` writes
        all of them.
    steps
        First step and the step after the last one; by default all of them.
    items
        Draw a curve for each image and video of the prompt, in place of one for all of them.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches; one column at
        least with `tokens`.

    Returns
    -------
    Figure
        A Matplotlib figure.

    Raises
    ------
    InputError
        If the definition is unknown or, with ``items``, has not three curves, ``steps`` or
        ``width`` cannot be used, or the trace has no visual keys or no step to draw.
    """
    curves = read_curves(trace, definition, steps, items=items)
    inches = width_in_inches(width)
    if tokens:
        return _with_tokens(curves, inches)
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        draw_curves(axes, curves, curves.steps[0], curves.steps[-1])
        axes.set_ylabel(textwrap.fill(measure_text(curves.share), 34))
        handles = curves.handles() + tag_handles(curves.regions)
        columns = min(len(handles), MOST_ACROSS) if inches > 5 else 3
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"step (each stands for the {owner_text(curves.share)})")
        finish(figure, HEIGHT, caption_text(curves.share))
        name_regions(axes, curves.regions, curves.shift)
    return figure


def _with_tokens(curves: Curves, inches: float) -> Figure:
    """Draw the curves in a few rows of even length, with no more labels than fit."""
    steps = len(curves.steps)
    across = max(inches, WIDTHS["one-column"]) - LEFT - RIGHT
    fitting = int(across / INCHES_PER_LABEL)
    stride = math.ceil(steps / (MOST_ROWS * fitting))
    labels = math.ceil(steps / stride)
    rows = math.ceil(labels / fitting)
    return draw_rows(
        curves,
        across=across,
        per_row=math.ceil(labels / rows) * stride,
        row_height=LONE_ROW if rows == 1 else ROW,
        stride=stride,
    )
