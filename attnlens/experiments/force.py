"""A known response fed again, under an intervention: the twin that compares step by step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.experiments.run import note_session
from attnlens.interventions import AtStep, Copy, Intervention, Route
from attnlens.interventions.base import Nothing
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.record import record
from attnlens.recording.trace import Trace
from attnlens.text import shortened


def force(
    vlm: VLM,
    prompt: Prompt,
    response: Trace | Sequence[int],
    intervention: Intervention | None = None,
    **recording: Any,
) -> Trace:
    """Feed a response's tokens again, many to a pass, and record them.

    Parameters
    ----------
    vlm, prompt
        The model, and what was asked.
    response
        A trace of an answer to the prompt, or the ids of its tokens.
    intervention
        What acts meanwhile; see ``attnlens.interventions.teacher_forcing.ForcedSession`` for
        text that it forces.
    recording
        ``layers``, ``visual_map`` and ``prompt_rows``, as in ``attnlens.record``.

    Returns
    -------
    Trace
        Step t compares with step t of the untouched run: only the intervention differs.

    Raises
    ------
    InputError
        If the response is none, has no token or an unknown one, is a trace of another prompt (give
        its ids where that is meant), or as in ``attnlens.interventions.intervene``.
    """
    check_prompt(prompt)
    tokens: Any = response
    if isinstance(response, Trace):
        other = differing_parts(prompt, response)
        if other:
            raise InputError(
                f"the trace is of another prompt (its {' and '.join(other)} differ): give the "
                "prompt that was answered, or trace.data['predicted_token_id'].values to force the "
                "tokens all the same"
            )
        tokens = response.data["predicted_token_id"].values
    known = vlm.model.get_input_embeddings().num_embeddings
    try:
        ids = [operator.index(i) for i in tokens]
    except TypeError as error:
        raise InputError(
            f"the response is {shortened(repr(tokens), 80)}: give a trace, or the ids of its tokens"
        ) from error
    unknown = [i for i in ids if not 0 <= i < known]
    if unknown:
        raise InputError(
            f"the response has the token id {unknown[0]}: give ids from 0 to {known - 1}"
        )
    return forced(vlm, prompt, ids, intervention or Nothing(), **recording)[0]


def forced(
    vlm: VLM, prompt: Prompt, ids: list[int], intervention: Intervention, **recording: Any
) -> tuple[Trace, torch.Tensor]:
    """Return the trace, and log-probabilities float32 [steps, vocabulary]; as ``force``."""
    with (
        record(vlm, prompt, **recording) as recorder,
        ForcedSession(vlm, prompt, intervention) as session,
    ):
        found = session.force(ids)
    trace = recorder.trace
    note_session(trace, intervention, session)
    return trace, found


def insertions(step: int) -> dict[str, Intervention | None]:
    """Return what is inserted at a step, by name: nothing, then more and more visual tokens."""
    at = AtStep(step)
    return {
        "nothing": None,
        **{f"ROUTE {p}%": Route(when=at, percent=p) for p in (25, 50, 75)},
        "COPY": Copy(when=at),
        "COPY twice": Copy(when=at) + Copy(when=at),
        "COPY 4 times": Copy(when=at) + Copy(when=at) + Copy(when=at) + Copy(when=at),
    }


def twins(
    vlm: VLM, prompt: Prompt, answer: Trace, *, layers: Sequence[int] | None = None
) -> dict[str, Trace]:
    """Feed an answer's tokens again, with visual tokens inserted in its middle (Theorem 3.2).

    Returns forced traces by name (see ``insertions``), as ``attnlens.measures.insertion`` takes
    them. An answer of one token is refused; ``layers`` are those to record, all when not given.
    """
    middle = answer.data.sizes["step"] // 2
    if not middle:
        raise InputError(
            "an answer of one token has no middle to insert at: give one of several tokens"
        )
    return {
        name: force(vlm, prompt, answer, intervention, layers=layers)
        for name, intervention in insertions(middle).items()
    }


def differing_parts(prompt: Prompt, trace: Trace) -> list[str]:
    """Return what of a prompt differs from a trace: ``prompt`` (its text), ``images``.

    Images are the same if their grids of visual tokens, the frames shown of a video and the hashes
    of their files are; an image that the caller opened is compared with a file's by size alone.
    """
    check_prompt(prompt)
    found = []
    text = trace.attrs.get("prompt")
    if text and text != prompt.text:
        found.append("prompt")
    noted = trace.attrs.get("images")
    if noted:
        own = [image.as_dict() for image in prompt.images]
        alike = len(noted) == len(own) and all(map(_same_image, noted, own))
        if not alike:
            found.append("images")
    return found


def check_prompt(prompt: Any) -> None:
    """Refuse what is no prompt of ``vlm.prompt``."""
    if not isinstance(prompt, Prompt):
        raise InputError(f"{type(prompt).__name__} was given as prompt: give one of vlm.prompt")


def _same_image(noted: dict[str, Any], own: dict[str, Any]) -> bool:
    if any(noted.get(side) not in (None, own[side]) for side in ("rows", "columns")):
        return False
    if noted.get("frames") != own.get("frames"):
        return False
    of_files = [bool(image.get("path")) for image in (noted, own)]
    if of_files[0] == of_files[1]:
        return noted.get("sha256") == own.get("sha256")
    return all(noted.get(side) == own.get(side) for side in ("width", "height"))
