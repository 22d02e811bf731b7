"""Text from outside (a model, a file name) made safe and short enough to print."""

from __future__ import annotations

import unicodedata

LONGEST_PATH = 500
"""Longest path that a message repeats in full, in characters."""


def printable(text: str) -> str:
    """Escape control characters, which a terminal would obey; keep line ends."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else repr(c)[1:-1]
        for c in text
    )


def one_line(text: str) -> str:
    """Put a text on one printable line."""
    return printable(" ".join(text.split()))


def counted(count: int, noun: str) -> str:
    """Say how many there are: "1 run", "2 runs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """Cut the middle out of a long text: names differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}\u2026{text[len(text) - (width - 1 - head) :]}"


def quoted(path: object) -> str:
    """Quote a path for a message; a path that is too long is cut, with its length."""
    text = str(path)
    if len(text) <= LONGEST_PATH:
        return repr(text)
    return f"{shortened(text, 80)!r} ({len(text):,} characters)"
