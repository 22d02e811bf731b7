"""The ways of generating that are compared: plain, recorded by attnlens, and watched by others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.record import record
from attnlens.recording.trace import Trace

VARIANTS = ("plain", "recorded", "eager")
"""Plain ``generate``; the same under ``attnlens.record``; eager attention with
``output_attentions`` and ``output_hidden_states`` kept for every step, as the reference script of
Look-Back (arXiv 2507.03019) does."""
PEERS = (*VARIANTS[:2], "attentions", "eager", "nnsight", "transformer_lens", "second pass")
"""All that ``attnlens bench --peers`` compares: ``attentions`` keeps eager attention alone;
``nnsight`` and ``transformer_lens`` are ``record`` of ``attnlens.lenses``; ``second pass``
generates plainly and then feeds the whole answer again with ``output_attentions``, as Reflection-V
(arXiv 2509.12132) does."""


@dataclass(frozen=True)
class Seen:
    """What a variant gives.

    Attributes
    ----------
    tokens
        int64 [new], the generated tokens.
    mass
        Fraction of attention mass on visual keys, float [steps, layers, heads]; None of a plain
        generation.
    """

    tokens: torch.Tensor
    mass: np.ndarray | None = None


def generate(model: Any, inputs: dict[str, Any], new: int, **options: Any) -> Any:
    """Generate exactly ``new`` tokens greedily."""
    return model.generate(
        **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, **options
    )


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Run a block in eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def eager_mass(vlm: VLM, prompt: Prompt, tokens: torch.Tensor) -> np.ndarray:
    """Visual mass of an answer's tokens, by one forced pass in eager attention.

    Returns float32 [steps, layers, heads].
    """
    whole = vlm.family.append(vlm.model.config, prompt.inputs, tokens[:-1].tolist())
    with eager_attention(vlm.model), torch.no_grad():
        output = vlm.model(**whole, output_attentions=True, use_cache=False, logits_to_keep=1)
    keys = len(prompt.segments) + len(tokens) - 1
    return np.stack([_on_visual(w, prompt, keys) for w in output.attentions], axis=1)


def _on_visual(weights: torch.Tensor, prompt: Prompt, keys: int) -> np.ndarray:
    """Add up the rows from the last one of the prompt on: [rows, heads].

    Of so many keys, the cache of a window has only the last ones.
    """
    length = len(prompt.segments)
    visual = torch.from_numpy(prompt.segments == "visual").to(weights.device)
    rows = weights[0, :, -1:] if weights.shape[2] == 1 else weights[0, :, length - 1 :]
    seen = F.pad(visual, (0, keys - length))[keys - weights.shape[3] :]
    return rows[:, :, seen].float().sum(-1).T.cpu().numpy()


def variant_calls(vlm: VLM, prompt: Prompt, new: int) -> dict[str, Callable[[], Seen]]:
    """Return, for each of ``PEERS``, a call that generates ``new`` tokens and gives what it saw.

    Parameters
    ----------
    vlm, prompt
        From ``attnlens.benchmark.model``.
    new
        How many tokens are generated.
    """
    model, inputs, length = vlm.model, prompt.inputs, len(prompt.segments)

    def of_trace(trace: Trace) -> Seen:
        ids = torch.from_numpy(trace.data["predicted_token_id"].values)
        return Seen(ids, trace.data["mass"].sel(segment="visual").values)

    def plain() -> Seen:
        return Seen(generate(model, inputs, new)[0, length:].cpu())

    def recorded() -> Seen:
        with record(vlm, prompt, visual_map=False) as recorder:
            generate(model, inputs, new)
        return of_trace(recorder.trace)

    def attentions(**kept: Any) -> Seen:
        with eager_attention(model):
            output = generate(
                model,
                inputs,
                new,
                output_attentions=True,
                return_dict_in_generate=True,
                **kept,
            )
        steps = [
            np.concatenate([_on_visual(w[:, :, -1:], prompt, length + step) for w in layers])
            for step, layers in enumerate(output.attentions)
        ]
        return Seen(output.sequences[0, length:].cpu(), np.stack(steps))

    def eager() -> Seen:
        return attentions(output_hidden_states=True)

    def lens(name: str) -> Callable[[], Seen]:
        def call() -> Seen:
            from attnlens import lenses

            options = {"min_new_tokens": new, "do_sample": False, "visual_map": False}
            (trace,) = getattr(lenses, name).record(vlm, prompt, new, **options)
            return of_trace(trace)

        return call

    def second_pass() -> Seen:
        tokens = plain().tokens
        return Seen(tokens, eager_mass(vlm, prompt, tokens))

    calls = (plain, recorded, attentions, eager, lens("nnsight"), lens("transformer_lens"))
    return dict(zip(PEERS, (*calls, second_pass), strict=True))
