"""Figures: made outside pyplot's bookkeeping, laid out, and written as the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from attnlens.errors import InputError
from attnlens.files import check_writable, write_file
from attnlens.plots.style import CAPTION_PAD, CAPTION_SIZE, NARROW, style

POINTS_PER_INCH = 72
"""Resolution at which vector formats are laid out."""
PLACE_DIGITS = 6
"""Digits that positions of axes are rounded to, as fractions of the figure."""
MOST_LAYOUTS = 8
"""How often a figure is laid out, at most, until nothing moves."""
MAX_PIXELS = 2**16 - 1
"""Longest side of a picture that Matplotlib draws."""

METADATA: dict[str, Any] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
"""File formats, and the entries left out of each: dates and versions differ between runs."""


class Figure(matplotlib.figure.Figure):
    """A Matplotlib figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        return render(self, "png", dpi=150)


@dataclass(frozen=True)
class TwoPanels:
    """A figure of two panels: side by side or, where it is narrow, one above the other."""

    figure: Figure
    axes: tuple[Axes, Axes]
    height: float
    stacked: bool

    @property
    def places(self) -> tuple[str, str]:
        """Where the panels are, in a caption's words."""
        return ("Above", "Below") if self.stacked else ("Left", "Right")


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Make an empty figure of a size in inches, outside pyplot's bookkeeping."""
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)  # so that text can be measured
    return figure


def two_panels(
    width: float,
    height: float,
    *,
    taller: float = 1.9,
    ratios: tuple[float, float] | None = None,
    gap: float | None = None,
) -> TwoPanels:
    """Make a figure of two panels; sizes are in inches.

    Where they are stacked, the figure is ``taller`` times as high. ``ratios`` are the panels'
    widths, or heights where stacked; ``gap`` is the room between stacked ones, as a fraction of
    their height.
    """
    stacked = width < NARROW
    height *= taller if stacked else 1
    figure = new_figure(width, height)
    shape = (2, 1) if stacked else (1, 2)
    options = {"height_ratios" if stacked else "width_ratios": ratios, "hspace": gap}
    first, second = figure.subplots(*shape, gridspec_kw=options)
    return TwoPanels(figure, (first, second), height, stacked)


def add_caption(figure: Figure, text: str) -> float:
    """Write a caption along the bottom of a figure, wrapped to its width.

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
    """Write words into a text of a figure, wrapped to a width in inches."""
    room = width * artist.figure.dpi
    lines: list[list[str]] = [[]]
    used = 0.0
    for word in text.split():
        long = _advance(word, artist.get_fontsize(), artist.figure.dpi)
        if lines[-1] and used + long > room:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += long
    artist.set_text("\n".join(" ".join(line) for line in lines))


@lru_cache(maxsize=10_000)
def _advance(word: str, size: float, dpi: float) -> float:
    """Width of a word and the space after it, in pixels; to measure is what takes time."""
    figure = new_figure(1, 1, constrained=False)
    figure.dpi = dpi
    stop = "|"  # white space at an end has no width
    both, alone = (
        figure.text(0, 0, text, fontsize=size, parse_math=False).get_window_extent().width
        for text in (f"{word} {stop}", stop)
    )
    return both - alone


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
    lay_out(figure)


def lay_out(figure: Figure) -> None:
    """Give panels their places now; every drawing does so again."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def fix_positions(figure: matplotlib.figure.Figure) -> None:
    """Keep the axes where the layout has put them, at rounded positions.

    The solver's last bits differ from run to run, and with them the names that SVG makes of
    positions.
    """
    figure.set_layout_engine("none")
    for axes, position in zip(figure.axes, _positions(figure), strict=True):
        in_layout = axes.get_in_layout()
        axes.set_position(position, which="original")
        axes.set_in_layout(in_layout)  # setting a position takes axes out of the layout


def _positions(figure: matplotlib.figure.Figure) -> list[Any]:
    """Left, bottom, width and height of each axes, rounded."""
    bounds = [axes.get_position(original=True).bounds for axes in figure.axes]
    return [tuple(round(edge, PLACE_DIGITS) for edge in one) for one in bounds]


@contextmanager
def _laid_out(figure: matplotlib.figure.Figure, dpi: float) -> Iterator[None]:
    """Lay out a figure for a resolution, and keep its positions inside the block.

    A layout depends invisibly on the one before, which would change the bytes. So it starts afresh
    and is repeated until nothing moves.
    """
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        yield
        return
    for axes in figure.axes:
        spec = axes.get_subplotspec()
        if spec is not None:
            axes.set_subplotspec(spec)  # where it was before any layout
    own = figure.dpi
    figure.dpi = dpi
    positions: list[Any] = []
    try:
        for _ in range(MOST_LAYOUTS):
            before = positions
            engine.execute(figure)
            positions = _positions(figure)
            if positions == before:
                break
    finally:
        figure.dpi = own
    fix_positions(figure)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def render(figure: matplotlib.figure.Figure, file_format: str, *, dpi: float = 200) -> bytes:
    """Draw a figure as "pdf", "svg" or "png", the same bytes each time.

    ``dpi`` (pixels per inch) is lowered where the picture would exceed Matplotlib's limit.
    """
    dpi = min(dpi, MAX_PIXELS / max(figure.get_size_inches()))
    buffer = io.BytesIO()
    with style(), _laid_out(figure, dpi if file_format == "png" else POINTS_PER_INCH):
        figure.savefig(buffer, format=file_format, dpi=dpi, metadata=METADATA[file_format])
    return buffer.getvalue()


def save(
    figure: matplotlib.figure.Figure,
    path: str | Path,
    file_format: str | None = None,
    *,
    dpi: float = 200,
) -> Path:
    """Write a figure to a file, whole or not at all, and the same bytes each time.

    Parameters
    ----------
    figure
        Any Matplotlib figure.
    path
        The file; a missing folder is made.
    file_format
        "pdf", "svg" or "png"; by default what the path ends in. A path without one of these
        endings gets the format's.
    dpi
        Pixels per inch of a PNG; lowered where the picture would exceed 65,535 pixels.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    InputError
        If the path is none, the format is unknown or contradicts it, or the folder cannot be
        written into.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"cannot write a figure to {path!r}: give the path of a file")
    path = _checked_path(Path(path), file_format)
    if path.is_dir():
        raise InputError(f"cannot write a figure to {str(path)!r}: it is a folder")
    check_writable(path.parent)
    data = render(figure, path.suffix.lower().removeprefix("."), dpi=dpi)
    with write_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def _checked_path(path: Path, file_format: str | None) -> Path:
    """Return the path to write, ending in its format."""
    listed = ", ".join(METADATA)
    suffix = path.suffix.lower().removeprefix(".")
    if file_format is None:
        if suffix not in METADATA:
            raise InputError(f"cannot tell the format of {str(path)!r}: end it in one of {listed}")
        return path
    if file_format not in METADATA:
        raise InputError(f"unknown format {file_format!r}: choose from {listed}")
    if suffix == file_format:
        return path
    if suffix in METADATA:
        raise InputError(f"{str(path)!r} does not end in the format asked for, {file_format!r}")
    return path.with_name(f"{path.name}.{file_format}")
