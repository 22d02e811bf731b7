"""Does the recorder see what a model attends with? A test on the model itself, on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.models.family import Parts
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.masks import as_bias, select_rows
from attnlens.recording.mass import attention_scores, attention_weights
from attnlens.recording.tap import (
    AttentionOnly,
    LayerAttention,
    attach,
    attach_editor,
    detach,
    detach_editor,
)

TOKENS = 8
"""Number of tokens of the probe."""
BIAS = 0.7
"""Added to the scores of the first key."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference of attention weights."""


@torch.no_grad()
def probe(parts: Parts) -> None:
    """Check a model of a family that has not been verified.

    On a few tokens: every layer shows its queries and keys; the keys are the tokens; the softmax of
    their products is what eager attention gives; the pass is the same with and without being
    watched; and a bias on a key moves mass as algebra says.

    Raises
    ------
    InputError
        If one of these does not hold, saying which.
    """
    name = type(parts.generator).__name__
    vocabulary = int(parts.unembed.weight.shape[0])
    ids = torch.arange(1, TOKENS + 1, device=parts.unembed.weight.device) % vocabulary
    embedded = parts.generator.get_input_embeddings()(ids)[None]

    def run(**options: Any) -> Any:
        return parts.text(inputs_embeds=embedded, use_cache=False, **options)

    seen: dict[int, LayerAttention] = {}
    plain = run()[0]
    with _shown(parts, seen):
        watched = run()[0]
    if not torch.equal(plain, watched):
        _refuse(name, "its pass changes when it is watched")
    missing = [i for i in range(parts.layer_count) if i not in seen]
    if missing:
        _refuse(name, f"layer {missing[0]} does not attend through transformers' interface")
    with _eager(parts):
        weights = run(output_attentions=True).attentions
        _check_weights(name, seen, weights)
        bias = _Bias()
        attach_editor(parts, bias)
        try:
            moved = run(output_attentions=True).attentions
        finally:
            detach_editor(parts, bias)
    rows = slice(1, TOKENS)  # the first row sees one key alone
    before, after = (w[0][0, :, rows, 0].double() for w in (weights, moved))
    odds = torch.log(after / (1 - after)) - torch.log(before / (1 - before))
    limit = 50 * TOLERANCE.get(weights[0].dtype, 1e-4)
    if not bool(((odds - BIAS).abs() < limit).all()):
        _refuse(name, "a bias on a key does not move its weight as a softmax would")


def _check_weights(name: str, seen: dict[int, LayerAttention], weights: Any) -> None:
    """Compare what queries and keys give with the weights of eager attention."""
    if weights is None or len(weights) != len(seen) or any(w is None for w in weights):
        _refuse(name, "eager attention does not give the weights of every layer")
    positions = torch.arange(TOKENS)
    for layer, shown in sorted(seen.items()):
        if shown.key.shape[2] != TOKENS or shown.query.shape[2] != TOKENS:
            _refuse(
                name,
                f"layer {layer} attends with {shown.query.shape[2]} queries to "
                f"{shown.key.shape[2]} keys where there are {TOKENS} tokens",
            )
        mask = select_rows(shown.mask, positions)
        scores = attention_scores(shown.query, shown.key, shown.scaling)
        ours = attention_weights(scores, positions, bias=None if mask is None else as_bias(mask))
        theirs = weights[layer].float()
        error = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        if error > TOLERANCE.get(weights[layer].dtype, 1e-4):
            _refuse(
                name,
                f"the softmax of layer {layer}'s products differs from its attention by "
                f"{error:.2g}: it does more, such as sinks or a cap on scores",
            )


def _refuse(name: str, reason: str) -> None:
    raise InputError(f"{name} is of no family that was verified, and {reason}: it is not recorded")


@contextmanager
def _shown(parts: Parts, seen: dict[int, LayerAttention]) -> Iterator[None]:
    listener = AttentionOnly(lambda shown: seen.__setitem__(shown.layer, shown))
    attach(parts, listener, GenerateWatch(TOKENS))
    try:
        yield
    finally:
        detach(parts, listener)


@contextmanager
def _eager(parts: Parts) -> Iterator[None]:
    """Run a block in eager attention."""
    config = parts.text.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


class _Bias:
    """Raises the scores of the first key; see ``attnlens.recording.tap.Editor``."""

    def begin_pass(self, tokens: int, past: int) -> None:
        """Do nothing."""

    def edit(self, seen: LayerAttention) -> torch.Tensor:
        """Return the mask with the bias, in the first layer."""
        mask = seen.mask
        if mask is None:
            later = torch.ones((TOKENS, TOKENS), dtype=torch.bool, device=seen.query.device).triu(1)
            mask = torch.zeros((1, 1, TOKENS, TOKENS), device=seen.query.device)
            mask = mask.masked_fill(later, torch.finfo(seen.query.dtype).min)
        mask = as_bias(mask).clone()
        if seen.layer == 0:
            mask[..., 0] += BIAS
        return mask.to(seen.query.dtype)
