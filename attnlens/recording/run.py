"""``attnlens.run``: generate and record in one call."""

from __future__ import annotations

from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.recording.record import record
from attnlens.recording.trace import Trace
from attnlens.vlm.load import VLM
from attnlens.vlm.prompt import Prompt

_RECORDING = ("layers", "visual_map", "prompt_rows", "every")


def run(
    vlm: VLM,
    prompt: Prompt,
    max_new_tokens: int = 256,
    intervention: None = None,
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
        None: interventions are not part of this version.
    seed
        Seed for sampled generation. Torch's generators are set back afterwards.
    options
        ``layers``, ``visual_map``, ``prompt_rows`` and ``every`` go to ``attnlens.record``,
        everything else to ``model.generate``.

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
    if intervention is not None:
        raise InputError(
            f"intervention={intervention!r}: this version records untouched runs; give None"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: give at least 1")
    if not isinstance(prompt, Prompt) or options.get("num_return_sequences", 1) != 1:
        raise InputError(
            "attnlens.run records one response to one prompt: for several, use attnlens.record "
            "and recorder.traces"
        )
    recording = {k: options.pop(k) for k in _RECORDING if k in options}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with (
        torch.random.fork_rng(devices=devices, enabled=seed is not None),
        record(vlm, prompt, seed=seed, **recording) as recorder,
    ):
        if seed is not None:
            torch.manual_seed(seed)
        vlm.model.generate(**prompt.inputs, max_new_tokens=max_new_tokens, **options)
    return recorder.trace
