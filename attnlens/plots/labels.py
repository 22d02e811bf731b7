"""Labels made of a model's tokens: readable, harmless, never on top of each other.

Token text is whatever a model writes. Line breaks and tabs get a visible sign, control and other
invisible characters go, dollar signs lose their meaning to Matplotlib, and characters that no font
here can draw become an empty box.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

from attnlens.plots.style import LABEL_SIZE, font_files

LONGEST = 14
"""Characters of a token label, enough for every tag; wide (East Asian) ones count twice."""

VISIBLE = dict.fromkeys("\n\r\v\f\x85\u2028\u2029", "⏎") | {"\t": "⇥"}
"""Signs that stand for line breaks and tabs."""
SPACE = "␣"
"""Stands for a token that is nothing but space."""
NOTHING = "∅"
"""Stands for a token without a printable character."""
NO_GLYPH = "□"
"""Stands for a character that no font in use can draw."""


@lru_cache(maxsize=4096)
def readable(text: str, longest: int = LONGEST) -> str:
    r"""Text of a token as it can be shown in a figure.

    Parameters
    ----------
    text
        Any string.
    longest
        Width to cut the result to, in characters; wide characters count twice.

    Returns
    -------
    str
        One line, without outer spaces. A dollar sign is written ``\$``, which Matplotlib shows as
        a plain dollar.
    """
    shown = "".join(map(_visible, text.replace("\r\n", "\n")))
    if not shown:
        return NOTHING
    shown = " ".join(shown.split())
    if not shown:
        return SPACE
    return _cut(shown, longest).replace("$", r"\$")


def _visible(character: str) -> str:
    """One character as it can be drawn; nothing where it has no look."""
    if character in VISIBLE:
        return VISIBLE[character]
    if unicodedata.category(character) in ("Cc", "Cf"):  # control and format characters
        return ""
    if character.isspace():
        return " "
    return character if _drawable(character) else NO_GLYPH


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    """Whether a font in use has the character."""
    return any(get_font(file).get_char_index(ord(character)) for file in font_files().values())


def _cut(text: str, longest: int) -> str:
    """Return the text, or its beginning and an ellipsis."""
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text]
    if sum(widths) <= longest:
        return text
    kept, width = "", 1
    for character, added in zip(text, widths, strict=True):
        width += added
        if width > longest:
            break
        kept += character
    return kept + "…"


def label_steps(axes: Axes, steps: Sequence[int], labels: Sequence[str], stride: int = 1) -> None:
    """Write a token under every ``stride``-th step, upright.

    Parameters
    ----------
    axes
        The axes, with steps along x.
    steps
        The steps.
    labels
        One label for each step, already `readable`.
    stride
        1 labels every step.
    """
    axes.set_xticks(steps[::stride], labels[::stride])
    axes.tick_params(axis="x", labelrotation=90, labelsize=LABEL_SIZE, length=1.5, pad=1.5)


def label_size(figure: Figure, labels: Sequence[str]) -> tuple[float, float]:
    """Measure upright labels.

    Parameters
    ----------
    figure
        The figure they are meant for.
    labels
        What `label_steps` takes.

    Returns
    -------
    tuple of float
        Width of the widest and height of the tallest label, in inches.
    """
    probe = figure.text(0, 0, "", rotation=90, fontsize=LABEL_SIZE)
    sizes = [(0.0, 0.0)]
    for label in set(labels):
        probe.set_text(label)
        box = probe.get_window_extent()
        sizes.append((box.width, box.height))
    probe.remove()
    width, height = np.max(sizes, axis=0) / figure.dpi
    return float(width), float(height)
