r"""Where the answer stands in a response: ``\boxed{...}``, a tag, or the whole of a short text."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")
_TAGGED = tuple(
    re.compile(rf"<{name}>(.*?)(?:</{name}>|$)", re.DOTALL | re.IGNORECASE)
    for name in ("CONCLUSION", "answer")
)
LONGEST_BARE = 200
"""Longest response that is an answer by itself, in characters."""


class Boxed(NamedTuple):
    r"""A ``\boxed{...}`` in a text.

    Attributes
    ----------
    start, stop
        Half-open span of its characters; one that is not closed reaches to the end of the text.
    inside
        Where its content begins.
    closed
        Whether its closing brace is there.
    """

    start: int
    inside: int
    stop: int
    closed: bool


def closing_braces(text: str) -> dict[int, int]:
    """Map each opening brace to its closing one, in linear time; unclosed ones are left out."""
    found, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            found[opened.pop()] = brace.start()
    return found


def boxed_spans(text: str) -> list[Boxed]:
    r"""Find every ``\boxed{...}``, inner braces counted; space before the brace is allowed.

    They are in order of their start; one inside another is listed after it.
    """
    closing = closing_braces(text)
    spans = []
    for opening in _OPENING.finditer(text):
        stop = closing.get(opening.end() - 1)
        closed = stop is not None
        spans.append(
            Boxed(opening.start(), opening.end(), len(text) if stop is None else stop + 1, closed)
        )
    return spans


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}``, stripped; None without one."""
    closed = [box for box in boxed_spans(text) if box.closed]
    return text[closed[-1].inside : closed[-1].stop - 1].strip() if closed else None


def final_answer(text: str) -> str | None:
    r"""Return the boxed answer, else that of a tag, else a short text as a whole, else None.

    The tags are ``<CONCLUSION>``, with which the five parts of Qwen-LookAgain (arXiv 2505.23558)
    end without a box, and ``<answer>``; the last one counts. A text of one line and at most
    ``LONGEST_BARE`` characters, with neither a tag nor an opened box, is an answer by itself, as
    where a prompt asks for a letter or a word.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    for tag in _TAGGED:
        parts = tag.findall(text)
        if parts:
            return parts[-1].strip() or None
    bare = text.strip()
    short = len(bare) <= LONGEST_BARE and len(bare.splitlines()) == 1
    return bare if short and not re.search(r"</?[A-Za-z]|\\boxed", bare) else None
