"""A known response fed again, under an intervention: the twin that compares step by step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.experiments.run import note_session
from attnlens.experiments.same_prompt import check_prompt, other_parts
from attnlens.interventions.base import Intervention, Nothing
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
        What is done meanwhile; see ``attnlens.interventions.teacher_forcing.ForcedSession`` for
        text that it forces.
    recording
        ``layers``, ``visual_map`` and ``prompt_rows``, as in ``attnlens.record``.

    Returns
    -------
    Trace
        Step t compares with step t of the untouched run: nothing but the intervention differs.

    Raises
    ------
    InputError
        If the response is none, has no token or an unknown one, is a trace of another prompt (give
        its ids where that is meant), or as in ``attnlens.interventions.intervene``.
    """
    check_prompt(prompt)
    said: Any = response
    if isinstance(response, Trace):
        other = other_parts(prompt, response)
        if other:
            raise InputError(
                f"the trace is of another prompt (its {' and '.join(other)} differ): give the "
                "prompt that was answered, or trace.data['predicted_token_id'].values to force the "
                "tokens all the same"
            )
        said = response.data["predicted_token_id"].values
    known = vlm.model.get_input_embeddings().num_embeddings
    try:
        ids = [operator.index(i) for i in said]
    except TypeError as error:
        raise InputError(
            f"the response is {shortened(repr(said), 80)}: give a trace, or the ids of its tokens"
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
