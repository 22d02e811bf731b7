"""Figures outside pyplot's bookkeeping, with a caption below."""

from __future__ import annotations

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from attnlens.plots.files import place_of, render
from attnlens.plots.style import CAPTION_PAD, CAPTION_SIZE


class Figure(matplotlib.figure.Figure):
    """A Matplotlib figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        """PNG of the figure, for Jupyter."""
        return render(self, "png", dpi=150)


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Make an empty figure of a size in inches, outside pyplot's bookkeeping."""
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)  # so that text can be measured
    return figure


def add_caption(figure: Figure, text: str) -> float:
    """Write a caption along the bottom of a figure, in as many lines as its width asks for.

    Returns
    -------
    float
        Height of the caption, in inches; `set_height` keeps that room free.
    """
    caption = figure.text(
        CAPTION_PAD,
        CAPTION_PAD,
        "",
        transform=figure.dpi_scale_trans,
        fontsize=CAPTION_SIZE,
        color="0.3",
        va="bottom",
        parse_math=False,
        gid="caption",
    )
    write_wrapped(caption, text, figure.get_figwidth() - 2 * CAPTION_PAD)
    return caption.get_window_extent().height / figure.dpi + 2 * CAPTION_PAD


def write_wrapped(artist: Text, text: str, width: float) -> None:
    """Write words into a text of a figure, in as many lines as a width in inches asks for."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        artist.set_text(longer)
        if artist.get_window_extent().width <= width * artist.figure.dpi:
            lines[-1] = longer
        else:
            lines.append(word)
    artist.set_text("\n".join(lines))


def set_height(figure: Figure, height: float, caption: float) -> None:
    """Give a figure its height without caption, and below it room for the caption, in inches."""
    total = height + caption
    figure.set_figheight(total)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, caption / total, 1, height / total))


def finish(figure: Figure, height: float, caption: str) -> None:
    """Put the caption below a figure of a height in inches, and lay it out."""
    set_height(figure, height, add_caption(figure, caption))
    figure.draw_without_rendering()


def settle(figure: Figure) -> None:
    """Lay out a figure for good, and round the places of its axes.

    The last bits of what the solver finds differ from run to run, where three panels stand above
    each other, and with them the names that SVG makes of the places.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(place_of(axes))
