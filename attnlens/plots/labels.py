"""A model's tokens as readable, harmless labels.

Token text is whatever a model writes. Line breaks and tabs get a visible sign, control and other
invisible characters are dropped, dollar signs lose their meaning to Matplotlib, and characters that
no font here can draw become an empty box.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from matplotlib.font_manager import get_font

from attnlens.plots.style import font_files

LONGEST = 14
"""Characters of a token label, enough for every tag; wide (East Asian) ones count twice."""

VISIBLE = dict.fromkeys("\n\r\v\f\x85\u2028\u2029", "⏎") | {"\t": "⇥"}
"""Signs that stand for line breaks and tabs."""
SPACE = "␣"
"""Stands for a token of spaces alone."""
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
    """One character as it can be drawn; nothing where it is invisible."""
    if character in VISIBLE:
        return VISIBLE[character]
    if unicodedata.category(character) in ("Cc", "Cf"):  # control and format characters
        return ""
    if character.isspace():
        return " "
    return character if _drawable(character) else NO_GLYPH


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    return any(get_font(file).get_char_index(ord(character)) for file in font_files().values())


def _cut(text: str, longest: int) -> str:
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
