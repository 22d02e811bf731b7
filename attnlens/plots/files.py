"""Figures as files: the same bytes for the same figure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from attnlens.errors import InputError
from attnlens.files import check_writable, write_file
from attnlens.plots.style import style

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
    try:
        for _ in range(MOST_LAYOUTS):
            before = found
            figure.draw_without_rendering()
            found = [place_of(axes) for axes in figure.axes]
            if found == before:
                break
    finally:
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


def place_of(axes: Any) -> tuple[float, float, float, float]:
    """Place of axes in their figure: left, bottom, width and height, rounded."""
    bounds = axes.get_position(original=True).bounds
    left, bottom, width, height = (round(edge, PLACE_DIGITS) for edge in bounds)
    return left, bottom, width, height


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
