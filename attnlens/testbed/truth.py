"""What each token of a true answer speaks of, and whether the text before determines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from attnlens.errors import InputError
from attnlens.testbed.answers import Part
from attnlens.testbed.scenes import Scene


class Answered(Protocol):
    """What of a sample the truth of its tokens follows from; see ``Sample``."""

    @property
    def scene(self) -> Scene:
        """The scene."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The true answer in parts."""

    @property
    def answer(self) -> str:
        """The true answer."""


@dataclass(frozen=True)
class TokenTruth:
    """The truth of one token of an answer.

    Attributes
    ----------
    text
        The token's text.
    speaks_of
        Index of the object (in reading order) that the token speaks of, or None.
    must_look
        True where neither the question nor the text before determines the token.
    section
        ``description``, ``reasoning``, ``verification``, ``conclusion`` or ``summary``.
    visual_tokens
        The visual tokens that hold the object, in reading order; empty where there is none.
    box
        Pixel box (left, top, right, bottom) of the object, or None.
    """

    text: str
    speaks_of: int | None
    must_look: bool
    section: str
    visual_tokens: tuple[int, ...]
    box: tuple[float, float, float, float] | None


def token_truth(sample: Answered, tokens: Sequence[str]) -> list[TokenTruth]:
    """Spread the truth of a sample's parts over the tokens of its answer.

    Parameters
    ----------
    sample
        The sample.
    tokens
        Texts of the answer's tokens, in order; whatever follows the answer (an end token) is left
        out.

    Returns
    -------
    list of TokenTruth
        One per token of the answer. A token that reaches over several parts must look if one of
        them must, and speaks of the first object that one of them speaks of.

    Raises
    ------
    InputError
        If the tokens do not spell the true answer.
    """
    answer = sample.answer
    ends = list(accumulate(len(text) for text in tokens))
    spelled = "".join(tokens)
    if not spelled.startswith(answer) or len(answer) not in ends:
        at = next((i for i, (a, b) in enumerate(zip(spelled, answer, strict=False)) if a != b), 0)
        raise InputError(
            f"the tokens do not spell the true answer: {spelled[at : at + 40]!r} stands "
            f"where {answer[at : at + 40]!r} is true (character {at})"
        )
    owner = [i for i, part in enumerate(sample.parts) for _ in part.text]
    result = []
    for start, stop in zip([0, *ends], ends, strict=False):
        if start >= len(answer):
            break
        if start == stop:  # bytes that wait for the rest of their character
            continue
        parts = [sample.parts[i] for i in dict.fromkeys(owner[start:stop])]
        index = next((p.speaks_of for p in parts if p.speaks_of is not None), None)
        o = None if index is None else sample.scene.objects[index]
        result.append(
            TokenTruth(
                text=answer[start:stop],
                speaks_of=index,
                must_look=any(p.must_look for p in parts),
                section=parts[0].section,
                visual_tokens=() if o is None else (sample.scene.visual_token(o),),
                box=None if o is None else o.box,
            )
        )
    return result
