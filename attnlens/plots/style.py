"""The one style of every figure: colours, line styles, widths, fonts.

Colours are seaborn's "colorblind" palette, which stays apart for colour-blind readers; each curve
also has a line style of its own, for print without colour. The same thing has the same colour in
every figure. seaborn is imported with the first figure, since it brings pyplot with it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import matplotlib.style
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine

from attnlens.errors import InputError
from attnlens.files import check_writable, write_file

_PLACES = {"image": 0, "query": 1, "generated": 2, "opening tag": 3, "closing tag": 4}
"""Place of each coloured thing in the palette: blue, orange, green, vermilion, purple."""

LONE_COLOUR = "#444444"
"""Colour of a measure that has no counterpart for text."""

CURVE_LINES: dict[str, Any] = {"image": "-", "query": (0, (4, 1.5)), "generated": (0, (1, 1))}
"""Line style of each curve."""

LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (7, 2)))
"""Line styles of curves that have no style of their own, in turn."""

CURVE_NAMES = {"image": "image", "query": "query text", "generated": "generated text"}
"""Name of each curve in a legend."""

BACK_FILL = "#FBF3B9"
"""Shade of a ``<back>`` region: the yellow of the palette, lightened."""
REGION_FILLS = ("#F2F2F2", "#E7E7E7", "#DBDBDB")
"""Shades of the other regions, in turn."""
TAG_LINES: dict[str, Any] = {"opening tag": "-", "closing tag": (0, (5, 1, 1, 1))}
"""Line style of the line at a tag."""

COLOUR_MAP = "cividis"
"""Perceptually uniform, and the same to colour-blind eyes."""

WIDTHS = {"one-column": 3.35, "two-column": 6.9}
"""Width presets, in inches."""

NARROW = 5.0
"""Below this width panels stand one above the other, in inches."""

POINTS_PER_INCH = 72
"""What vector formats are laid out in."""

PLACE_DIGITS = 6
"""Digits of places in a figure, in parts of its size."""
MOST_LAYOUTS = 8
"""How often a figure is laid out, at most, until nothing moves."""

MAX_PIXELS = 2**16 - 1
"""Matplotlib draws no picture with a longer side."""

METADATA: dict[str, Any] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
"""File formats, and the entries left out of each: dates and versions differ between runs."""

CAPTION_SIZE = 6.5
"""Font size of captions, in points."""
CAPTION_PAD = 0.05
"""Room around captions, in inches."""

LABEL_SIZE = 6.0
"""Font size of token labels, in points: the smallest text of any figure."""

FALLBACK_FAMILIES = ("Arial Unicode MS", "Droid Sans Fallback", "Noto Sans SC", "Noto Sans JP")
"""Families asked for characters that DejaVu Sans lacks, where they are installed."""


@lru_cache(maxsize=1)
def font_files() -> dict[str, str]:
    """Font families in use, in the order they are asked for a character, with their files.

    DejaVu Sans ships with Matplotlib. Of the others, only TrueType files are taken: PDF embeds
    them whole (font type 42), which it cannot do with other outlines.
    """
    files = {"DejaVu Sans": str(font_manager.findfont("DejaVu Sans"))}
    for entry in font_manager.fontManager.ttflist:
        if entry.name in FALLBACK_FAMILIES and str(entry.fname).lower().endswith(".ttf"):
            files.setdefault(entry.name, str(entry.fname))
    return files


def _parameters() -> dict[str, Any]:
    """Matplotlib parameters of the style."""
    return {
        "font.family": list(font_files()),
        "font.size": 8,
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 2.5,
        "figure.dpi": 100,
        "savefig.dpi": 200,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "attnlens",
        "text.usetex": False,
    }


@lru_cache(maxsize=1)
def colours() -> dict[str, str]:
    """Colour of each curve of `attnlens.measures.shares` and of the lines at tags."""
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    return {name: palette[place] for name, place in _PLACES.items()}


def tag_line(tag: str) -> dict[str, Any]:
    """Look of the line at an "opening tag" or a "closing tag"."""
    return {"color": colours()[tag], "linestyle": TAG_LINES[tag], "linewidth": 1}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style to what is made and drawn inside the block.

    The user's own parameters neither show through nor change.
    """
    import seaborn  # noqa: F401 (keeps a copy of the parameters it finds: it must find the user's)

    with mpl.style.context(_parameters(), after_reset=True):
        yield


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
    room = (figure.get_figwidth() - 2 * CAPTION_PAD) * figure.dpi
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        caption.set_text(longer)
        if caption.get_window_extent().width <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    caption.set_text("\n".join(lines))
    return caption.get_window_extent().height / figure.dpi + 2 * CAPTION_PAD


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


@contextmanager
def _laid_out(figure: matplotlib.figure.Figure, dpi: float) -> Iterator[None]:
    """Lay out a figure for its pixels, and keep it so inside the block.

    A layout starts from the one before, and ends where the solver's rounding takes it. Neither can
    be seen, but the bytes would be others: so it starts anew, goes on until nothing moves, and
    places are rounded.
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
    found: list[Any] = []
    for _ in range(MOST_LAYOUTS):
        before = found
        figure.draw_without_rendering()
        found = [_place(axes) for axes in figure.axes]
        if found == before:
            break
    figure.dpi = own
    for axes, place in zip(figure.axes, found, strict=True):
        inside = axes.get_in_layout()
        axes.set_position(place, which="original")
        axes.set_in_layout(inside)
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def _place(axes: Any) -> tuple[float, ...]:
    return tuple(round(edge, PLACE_DIGITS) for edge in axes.get_position(original=True).bounds)


def render(figure: matplotlib.figure.Figure, file_format: str, *, dpi: float = 200) -> bytes:
    """Draw a figure into bytes, the same bytes each time.

    Parameters
    ----------
    figure
        Any Matplotlib figure.
    file_format
        "pdf", "svg" or "png".
    dpi
        Pixels per inch; lowered where the picture would exceed Matplotlib's limit of pixels.
    """
    limit = MAX_PIXELS / max(figure.get_size_inches())
    buffer = io.BytesIO()
    with style():
        pixels = min(dpi, limit) if file_format == "png" else POINTS_PER_INCH
        with _laid_out(figure, pixels):
            figure.savefig(
                buffer, format=file_format, dpi=min(dpi, limit), metadata=METADATA[file_format]
            )
    return buffer.getvalue()


def width_in_inches(width: str | float) -> float:
    """Width in inches of a preset's name or of a number of inches.

    Raises
    ------
    InputError
        For any other name, or a number outside 1 to 100.
    """
    if isinstance(width, str):
        if width in WIDTHS:
            return WIDTHS[width]
    elif isinstance(width, (int, float)) and not isinstance(width, bool) and 1 <= width <= 100:
        return float(width)
    names = " or ".join(repr(name) for name in WIDTHS)
    raise InputError(f"width is {width!r}: give {names}, or inches from 1 to 100")


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
