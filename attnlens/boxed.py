r"""The final answer of a response, as ``\boxed{...}`` holds it."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")


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
    """Find the closing brace of each opening one.

    Parameters
    ----------
    text
        Any text; the time taken grows with its length, however braces stand in it.

    Returns
    -------
    dict
        Places of both; an opening brace without a closing one is left out.
    """
    found, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            found[opened.pop()] = brace.start()
    return found


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
