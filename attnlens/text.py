"""Text from strangers (a model, a file name) made safe to print on a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Show control characters as escapes, so that no terminal obeys them; keep line ends."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else repr(c)[1:-1]
        for c in text
    )


def one_line(text: str) -> str:
    """Put a message on one printable line."""
    return printable(" ".join(text.split()))


def shortened(text: str, width: int) -> str:
    """Cut the middle out of a text of more than so many characters: ends tell names apart."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}\u2026{text[len(text) - (width - 1 - head) :]}"
