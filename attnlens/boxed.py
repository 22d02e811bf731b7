r"""The final answer of a response, as ``\boxed{...}`` holds it."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = re.compile(r"\\boxed\s*\{")


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


def boxed_spans(text: str) -> list[Boxed]:
    r"""Find every ``\boxed{...}``, inner braces counted; space before the brace is allowed.

    Parameters
    ----------
    text
        A response.

    Returns
    -------
    list of Boxed
        In order of their start. One inside another is listed after it.
    """
    spans = []
    for opening in _OPENING.finditer(text):
        depth, at = 1, opening.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        spans.append(Boxed(opening.start(), opening.end(), at, depth == 0))
    return spans


def boxed_answer(text: str) -> str | None:
    r"""Return what stands in the last closed ``\boxed{...}`` of a text.

    Parameters
    ----------
    text
        A response.

    Returns
    -------
    str or None
        With inner braces kept and outer spaces removed; None where there is no closed one.
    """
    closed = [box for box in boxed_spans(text) if box.closed]
    return text[closed[-1].inside : closed[-1].stop - 1].strip() if closed else None


def final_answer(text: str) -> str | None:
    r"""Return the boxed answer; without one, what stands inside the last ``<CONCLUSION>``.

    Parameters
    ----------
    text
        A response. The five parts of Qwen-LookAgain (arXiv 2505.23558) end in a conclusion, and
        nothing in them asks for a box.

    Returns
    -------
    str or None
        None where there is neither.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    parts = re.findall(r"<CONCLUSION>(.*?)(?:</CONCLUSION>|$)", text, re.DOTALL | re.IGNORECASE)
    return parts[-1].strip() or None if parts else None
