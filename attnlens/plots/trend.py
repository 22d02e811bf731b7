"""The trend: how much each step attends to the image, the query text and the generated text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from attnlens.plots.curves import (
    caption_text,
    draw_curves,
    label_note,
    measure_text,
    owner_text,
    read_curves,
)
from attnlens.plots.labels import fitting_stride, label_size, label_steps
from attnlens.plots.spans import name_regions, tag_handles
from attnlens.plots.style import (
    Figure,
    add_caption,
    new_figure,
    set_height,
    style,
    width_in_inches,
)

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

HEIGHT = 2.6
"""Height of the figure without caption and token labels, in inches."""
INCHES_PER_TOKEN = 0.11
"""Room that one upright token label takes."""
WIDEST = 40.0
"""Width up to which a figure grows so that every token is labelled, in inches."""


def trend(
    trace: TraceLike,
    definition: str = "look-back",
    *,
    tokens: bool = False,
    steps: tuple[int, int] | None = None,
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
        Label the step axis with tokens. The figure grows with the number of steps, up to 40
        inches; where not every label fits, every n-th is written.
    steps
        First step and the step after the last one; by default all of them.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A Matplotlib figure.

    Raises
    ------
    InputError
        If the definition is unknown, ``steps`` or ``width`` cannot be used, or the trace has no
        visual keys or no step to draw.
    """
    curves = read_curves(trace, definition, steps)
    inches = width_in_inches(width)
    first, last = curves.steps[0], curves.steps[-1]
    if tokens:
        inches = max(inches, min(WIDEST, 1 + (last - first + 1) * INCHES_PER_TOKEN))
    owner = owner_text(curves.share)
    height, caption = HEIGHT, caption_text(curves.share)
    with style():
        figure = new_figure(inches, height)
        axes = figure.add_subplot()
        draw_curves(axes, curves, first, last)
        axes.set_ylabel(textwrap.fill(measure_text(curves.share), 34))
        handles = curves.handles() + tag_handles(curves.regions)
        columns = len(handles) if inches > 5 else 3
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        if tokens:
            axes.set_xticks([])
            axes.set_xlabel(owner)
            caption += label_note(curves.labels)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel(f"step (each stands for the {owner})")
        room = add_caption(figure, caption)
        set_height(figure, height, room)
        figure.draw_without_rendering()
        if tokens:
            label_width, label_height = label_size(figure, curves.labels)
            height += label_height
            stride = fitting_stride(axes, label_width)
            label_steps(axes, curves.steps, curves.labels, stride)
            if stride > 1:
                axes.set_xlabel(f"{owner} (one label in {stride} steps)")
        name_regions(axes, curves.regions, curves.shift)
        set_height(figure, height, room)
        figure.draw_without_rendering()
    return figure
