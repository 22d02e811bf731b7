"""What attention heads give some rows, computed anew as if these saw other keys.

A head's output is the mean of the values that it sees, weighted by the softmax of its scores, so
cutting a key, or replacing one, needs no second pass up to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnlens.errors import InputError
from attnlens.recording.masks import as_bias, select_rows
from attnlens.recording.mass import attention_scores, attention_weights
from attnlens.recording.tap import LayerAttention

CHUNK_ELEMENTS = 16_000_000
"""Largest number of attention weights (float32) held at a time."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Largest difference between a head's output and ours, relative to the largest output."""


def head_weights(
    seen: LayerAttention,
    rows: torch.Tensor,
    heads: Sequence[int] | None = None,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax weights of some rows of a whole pass.

    Parameters
    ----------
    seen
        What the layer attended with.
    rows
        int64 [rows]: their indices, on the CPU.
    heads
        Indices of the heads; all when not given.
    hidden
        bool [rows, keys]: keys that a row does not see.

    Returns
    -------
    torch.Tensor
        float32 [heads, rows, keys].
    """
    query, key, mask = seen.query[:, :, rows], seen.key, select_rows(seen.mask, rows)
    if heads is not None:
        chosen = list(heads)
        group = query.shape[1] // key.shape[1]
        key = key[:, [head // group for head in chosen]]
        mask = mask[:, chosen] if mask is not None and mask.shape[1] > 1 else mask
        query = query[:, chosen]
    bias = None if mask is None else as_bias(mask)
    scores = attention_scores(query, key, seen.scaling)
    if hidden is not None:
        scores.masked_fill_(hidden.to(scores.device), float("-inf"))
    return attention_weights(scores, rows, bias=bias)[0]


def head_values(seen: LayerAttention, values: torch.Tensor, heads: Sequence[int]) -> torch.Tensor:
    """Values that heads see, float32 [heads, keys, dimension].

    ``values`` is what ``Block.values`` returns for one sequence: [keys, key heads x dimension].
    """
    key_heads = seen.key.shape[1]
    group = seen.query.shape[1] // key_heads
    split = values.unflatten(-1, (key_heads, -1)).transpose(0, 1)
    return split[[head // group for head in heads]].float()


def output_without_keys(
    seen: LayerAttention,
    values: torch.Tensor,
    heads: Sequence[int],
    rows: torch.Tensor,
    hidden: torch.Tensor,
) -> torch.Tensor:
    """Compute what heads give rows that do not see some keys.

    Parameters
    ----------
    seen, heads, rows
        As in ``head_weights``.
    values
        As in ``head_values``.
    hidden
        bool [keys]: the keys that are not seen, except by their own row.

    Returns
    -------
    torch.Tensor
        float32 [rows, heads, dimension]. At most ``CHUNK_ELEMENTS`` weights are held at a time.
    """
    of_heads = head_values(seen, values, heads)
    at_once = max(1, CHUNK_ELEMENTS // (len(heads) * seen.key.shape[2]))
    pieces = []
    for some in rows.split(at_once):
        cut = hidden.expand(len(some), -1).clone()
        cut[range(len(some)), some] = False
        weights = head_weights(seen, some, heads, cut)
        pieces.append((weights @ of_heads).transpose(0, 1))
    return torch.cat(pieces)


def change_by_key(
    own: tuple[LayerAttention, torch.Tensor],
    other: tuple[LayerAttention, torch.Tensor],
    head: int,
    rows: torch.Tensor,
    slots: Sequence[int],
) -> torch.Tensor:
    """Compute how a head's output changes when one key and its value come from another pass.

    Parameters
    ----------
    own, other
        What the layer attended with, and its values, in the pass that is changed and in the other.
    head, rows
        As in ``head_weights``.
    slots
        Keys, each replaced by itself. No key of a pass without a difference changes anything:
        that gives exactly zero.

    Returns
    -------
    torch.Tensor
        float64 [slots, rows, dimension]; as much is held a few times while it is computed.
    """
    (seen, values), (theirs, their_values) = own, other
    places = list(slots)
    mine = head_values(seen, values, [head])[0].double()
    replaced = head_values(theirs, their_values, [head])[0].double()[places]
    pieces = []
    for here in rows.split(max(1, CHUNK_ELEMENTS // seen.key.shape[2])):
        before = _scores(seen, seen.key, head, here)
        after = _scores(seen, theirs.key, head, here)[:, places]
        highest = torch.maximum(before.amax(-1), after.amax(-1))[:, None]
        before, after = (before - highest).exp(), (after - highest).exp()
        taken = before[:, places]
        total, summed = before.sum(-1, keepdim=True), before @ mine
        added = after[..., None] * replaced - taken[..., None] * mine[places]
        new = (summed[:, None] + added) / (total + (after - taken))[..., None]
        pieces.append((new - (summed / total)[:, None]).transpose(0, 1))
    return torch.cat(pieces, dim=1)


def _scores(seen: LayerAttention, key: torch.Tensor, head: int, rows: torch.Tensor) -> torch.Tensor:
    """Masked scores of one head, float64 [rows, keys]; minus infinity where nothing is seen."""
    mask = select_rows(seen.mask, rows)
    group = seen.query.shape[1] // key.shape[1]
    query, of_keys = seen.query[:, head : head + 1, rows], head // group
    scores = attention_scores(query, key[:, of_keys : of_keys + 1], seen.scaling)[0, 0].double()
    if mask is not None:
        scores = scores + as_bias(mask)[0, head if mask.shape[1] > 1 else 0]
    later = torch.arange(key.shape[2]) > rows[:, None]
    return scores.masked_fill(later.to(scores.device), float("-inf"))


def check_output(
    seen: LayerAttention, values: torch.Tensor, row: int, output: torch.Tensor
) -> None:
    """Check that a layer's attention is the plain softmax mean that this file computes.

    Parameters
    ----------
    seen, values
        As in ``head_values``.
    row, output
        One row, and what the layer's heads gave it: [heads x dimension].

    Raises
    ------
    InputError
        If it is something else, such as attention with sinks, a cap on scores, or a gate.
    """
    heads = range(seen.query.shape[1])
    none = torch.zeros(seen.key.shape[2], dtype=torch.bool)
    ours = output_without_keys(seen, values, heads, torch.tensor([row]), none).flatten()
    largest = float(output.float().abs().max())
    error = float((ours - output.float()).abs().max())
    if error > TOLERANCE.get(output.dtype, 1e-3) * max(largest, 1e-6):
        raise InputError(
            f"layer {seen.layer}'s heads give up to {largest:.3g}, and a softmax mean of its "
            f"values differs by {error:.3g}: its attention does more, and cannot be cut or patched "
            "by edge"
        )
