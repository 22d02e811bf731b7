"""One answer fed again with more and more visual tokens inserted: what Theorem 3.2 speaks of."""

from __future__ import annotations

from collections.abc import Sequence

from attnlens.errors import InputError
from attnlens.experiments.force import force
from attnlens.interventions import AtStep, Copy, Intervention, Route
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.trace import Trace


def insertions(step: int) -> dict[str, Intervention | None]:
    """Name what is inserted at a step: nothing, then more and more visual tokens."""
    at = AtStep(step)
    return {
        "nothing": None,
        **{f"ROUTE {p}%": Route(when=at, percent=p) for p in (25, 50, 75)},
        "COPY": Copy(when=at),
        "COPY twice": Copy(when=at) + Copy(when=at),
        "COPY 4 times": Copy(when=at) + Copy(when=at) + Copy(when=at) + Copy(when=at),
    }


def twins(
    vlm: VLM, prompt: Prompt, said: Trace, *, layers: Sequence[int] | None = None
) -> dict[str, Trace]:
    """Feed an answer's tokens again, with visual tokens inserted in its middle.

    Parameters
    ----------
    vlm, prompt
        The model, and what was asked.
    said
        The answer.
    layers
        Layers to record; all when not given.

    Returns
    -------
    dict
        Forced traces by name, as ``attnlens.measures.insertion`` takes them; see ``insertions``.

    Raises
    ------
    InputError
        If the answer has one token.
    """
    middle = said.data.sizes["step"] // 2
    if not middle:
        raise InputError(
            "an answer of one token has no middle to insert at: give one of several tokens"
        )
    return {
        name: force(vlm, prompt, said, intervention, layers=layers)
        for name, intervention in insertions(middle).items()
    }
