"""The one style of every figure: colours, line styles, widths, fonts.

Colours are seaborn's "colorblind" palette, which stays apart for colour-blind readers; each curve
also has its own line style, for print without colour. The same thing has the same colour in
every figure. seaborn is imported with the first figure, since it brings pyplot with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import matplotlib.style
from matplotlib import font_manager

from attnlens.errors import InputError

_ITEM_PLACES = (0, 9, 5, 6, 7)
"""Indices of the palette for the images of a prompt, those of other curves left out."""
_PLACES = {"image": 0, "query": 1, "generated": 2, "opening tag": 3, "closing tag": 4}
"""Index of each coloured thing in the palette: blue, orange, green, vermilion, purple."""

LONE_COLOUR = "#444444"
"""Colour of a measure that has no counterpart for text."""
ZERO_LINE: dict[str, Any] = {"color": "0.6", "linewidth": 0.6, "zorder": 0}
"""Look of the line at zero, or at another value to compare with."""
BAR: dict[str, Any] = {"ls": "", "capsize": 2}
"""Look of an interval without a line."""
DASHED: Any = (0, (4, 1.5))
DOTTED: Any = (0, (1, 1))

CURVE_LINES: dict[str, Any] = {"image": "-", "query": DASHED, "generated": DOTTED}
"""Line style of each curve."""

LINES: tuple[Any, ...] = ("-", DASHED, DOTTED, (0, (5, 1, 1, 1)), (0, (7, 2)))
"""Line styles of other curves, used in order."""

CURVE_NAMES = {"image": "image", "query": "query text", "generated": "generated text"}
"""Name of each curve in a legend."""

BACK_FILL = "#FBF3B9"
"""Shade of a ``<back>`` region: the yellow of the palette, lightened."""
REGION_FILLS = ("#F2F2F2", "#E7E7E7", "#DBDBDB")
"""Shades of the other regions, used in order."""
TAG_LINES: dict[str, Any] = {"opening tag": "-", "closing tag": (0, (5, 1, 1, 1))}
"""Line style of the line at a tag."""

COLOUR_MAP = "cividis"
"""Perceptually uniform, and the same to colour-blind eyes."""

WIDTHS = {"one-column": 3.35, "two-column": 6.9}
"""Width presets, in inches."""

NARROW = 5.0
"""Below this width, in inches, panels are stacked."""

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
    """Files of the font families in use, in the order they are asked for a character.

    DejaVu Sans ships with Matplotlib. Of the others, only TrueType files are taken: PDF embeds
    them whole (font type 42), which it cannot do with other outlines.
    """
    files = {"DejaVu Sans": str(font_manager.findfont("DejaVu Sans"))}
    for entry in font_manager.fontManager.ttflist:
        if entry.name in FALLBACK_FAMILIES and str(entry.fname).lower().endswith(".ttf"):
            files.setdefault(entry.name, str(entry.fname))
    return files


def _parameters() -> dict[str, Any]:
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


def item_line(number: int) -> dict[str, Any]:
    """Look of the curve of an image or a video by its number in the prompt."""
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    rounds, place = divmod(number, len(_ITEM_PLACES))
    lines = [line for line in LINES if line not in (DASHED, DOTTED)]  # these are of text
    line = lines[(place + rounds) % len(lines)]
    return {"color": palette[_ITEM_PLACES[place]], "linestyle": line}


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
