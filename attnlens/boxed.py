r"""The final answer of a response, as ``\boxed{...}`` holds it."""

from __future__ import annotations

OPENING = "\\boxed{"


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
    start = text.rfind(OPENING)
    while start >= 0:
        begin = start + len(OPENING)
        depth = 1
        for at in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[begin:at].strip()
        start = text.rfind(OPENING, 0, start)
    return None
