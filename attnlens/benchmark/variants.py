"""The variants of generation that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnlens.recording.record import record

VARIANTS = ("plain", "recorded", "eager")
"""Plain ``generate``; the same under ``attnlens.record``; eager attention with
``output_attentions`` and ``output_hidden_states`` kept for every step, as the reference script of
Look-Back (arXiv 2507.03019) does."""


def generate(model: Any, inputs: dict[str, Any], new: int, **options: Any) -> Any:
    """Generate exactly ``new`` tokens greedily."""
    return model.generate(
        **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, **options
    )


def variant_calls(
    model: Any, inputs: dict[str, Any], segments: Any, new: int
) -> dict[str, Callable]:
    """Return, for each of ``VARIANTS``, a call that generates ``new`` tokens and returns them.

    The inputs and segments are those of ``attnlens.benchmark.model.build_inputs``.
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
