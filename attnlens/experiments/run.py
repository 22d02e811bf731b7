"""``attnlens.run``: generate and record in one call."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from attnlens.errors import InputError
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.record import record, with_map
from attnlens.recording.store import as_plain
from attnlens.recording.trace import Trace

if TYPE_CHECKING:
    from attnlens.interventions.base import Intervention
    from attnlens.interventions.session import Session
    from attnlens.interventions.teacher_forcing import ForcedSession

RECORDING = ("layers", "visual_map", "map_heads", "prompt_rows", "every")


def run(
    vlm: VLM,
    prompt: Prompt,
    max_new_tokens: int = 256,
    intervention: Intervention | None = None,
    *,
    seed: int | None = None,
    **options: Any,
) -> Trace:
    """Generate a response and record it.

    Parameters
    ----------
    vlm, prompt
        From ``attnlens.load`` and ``vlm.prompt``.
    max_new_tokens
        Longest response, in tokens.
    intervention
        One of ``attnlens.interventions``, or several joined by ``+``; None leaves the run
        untouched. What was done is in ``trace.attrs["interventions"]`` (one entry for each
        time that one acted) and ``trace.attrs["never_fired"]``.
    seed
        Seed for sampled generation. Torch's generators are set back afterwards.
    options
        ``layers``, ``visual_map``, ``map_heads``, ``prompt_rows`` and ``every`` go to
        ``attnlens.record``, everything else to ``model.generate``. When ``visual_map`` is not
        given, it is kept while it is small for a response of ``max_new_tokens``.

    Returns
    -------
    Trace
        The record of the generation.

    Raises
    ------
    InputError
        If ``max_new_tokens`` is less than 1, or ``record`` or ``generate`` is given something
        that it cannot use.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: give at least 1")
    if not isinstance(prompt, Prompt) or options.get("num_return_sequences", 1) != 1:
        raise InputError(
            "attnlens.run records one response to one prompt: for several, use attnlens.record "
            "and recorder.traces"
        )
    recording = {k: options.pop(k) for k in RECORDING if k in options}
    recording = with_map(vlm, prompt, max_new_tokens, recording)
    from attnlens.interventions.session import intervene

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with (
        torch.random.fork_rng(devices=devices, enabled=seed is not None),
        record(vlm, prompt, seed=seed, **recording) as recorder,
        nullcontext() if intervention is None else intervene(vlm, prompt, intervention) as session,
    ):
        if seed is not None:
            torch.manual_seed(seed)
        vlm.model.generate(**prompt.inputs, max_new_tokens=max_new_tokens, **options)
    trace = recorder.trace
    if session is not None:
        note_session(trace, intervention, session)
    return trace


def note_session(trace: Trace, intervention: Any, session: Session | ForcedSession) -> None:
    """Write into a trace what was done, when, and what never fired."""
    trace.attrs["intervention"] = repr(intervention)
    trace.attrs["interventions"] = [as_plain(asdict(event)) for event in session.events]
    trace.attrs["never_fired"] = session.never_fired
