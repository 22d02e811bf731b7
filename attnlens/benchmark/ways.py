"""The ways of generating that are compared: plain, recorded, and eager as scripts do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnlens.recording.record import record

WAYS = ("plain", "recorded", "eager")
"""Plain ``generate``; the same under ``attnlens.record``; eager attention with
``output_attentions`` and ``output_hidden_states`` kept for every step, as the reference script of
Look-Back (arXiv 2507.03019) does."""


def generate(model: Any, inputs: dict[str, Any], new: int, **options: Any) -> Any:
    """Generate greedily, so many tokens whatever they are."""
    return model.generate(
        **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, **options
    )


def ways(model: Any, inputs: dict[str, Any], segments: Any, new: int) -> dict[str, Callable]:
    """Return the call that generates ``new`` tokens in each of ``WAYS``, giving the tokens.

    Parameters
    ----------
    model
        From ``attnlens.benchmark.model.build``.
    inputs, segments
        From ``build_inputs``.
    new
        Tokens to generate.
    """

    def plain() -> Any:
        return generate(model, inputs, new)

    def recorded() -> Any:
        with record(model, segments) as recorder:
            tokens = generate(model, inputs, new)
        _ = recorder.trace
        return tokens

    def eager() -> Any:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            return generate(
                model,
                inputs,
                new,
                output_attentions=True,
                output_hidden_states=True,
                return_dict_in_generate=True,
            ).sequences
        finally:
            model.set_attn_implementation(before)

    return {"plain": plain, "recorded": recorded, "eager": eager}
