"""From queries and keys to attention mass by segment: pure functions of tensors.

One softmax row of attention is ``softmax(q . k_j * scaling + bias_j)`` over the visible keys j.
Mass of a segment is the sum of that row over the segment's keys: a fraction, and the segments of
a row add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CHUNK_ELEMENTS = 4_000_000
"""Largest number of attention weights (float32) that is held at a time."""


@dataclass(frozen=True)
class Mass:
    """What is kept of attention rows.

    Attributes
    ----------
    by_column
        float32 [batch, rows, heads, columns]: fraction of attention mass on each column's keys.
    visual_weight
        float32 [batch, rows wanted, visual] or None: weight of each visual key, mean over heads.
    visual_nonzero
        int32 [batch, rows wanted]: number of visual keys whose weight, summed over heads, is not
        zero.
    """

    by_column: torch.Tensor
    visual_weight: torch.Tensor | None
    visual_nonzero: torch.Tensor


def attention_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    scaling: float,
    hidden: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention rows in float32.

    Parameters
    ----------
    queries
        [batch, heads, rows, dimension], after rotary embedding.
    keys
        [batch, key heads, keys, dimension], after rotary embedding; every group of
        ``heads / key heads`` consecutive query heads shares a key head.
    positions
        int64 [rows], on the CPU: the key slot of each query. A query sees the keys up to its own
        slot.
    scaling
        Factor on the dot products.
    hidden
        bool [batch, keys]: keys that no query sees (padding).
    bias
        float32, broadcastable to [batch, heads, rows, keys]: added to the scaled scores.

    Returns
    -------
    torch.Tensor
        float32 [batch, heads, rows, keys]; each row adds up to 1.
    """
    batch, heads, rows, dimension = queries.shape
    key_heads, length = keys.shape[1], keys.shape[2]
    grouped = queries.float().reshape(batch, key_heads, heads // key_heads * rows, dimension)
    scores = torch.matmul(grouped, keys.float().transpose(2, 3))
    scores = scores.reshape(batch, heads, rows, length).mul_(scaling)
    if bias is not None:
        scores += bias
    first = int(positions.min()) + 1  # every query sees the keys before
    slots = torch.arange(first, length, device=keys.device)
    later = slots[None, :] > positions.to(keys.device)[:, None]
    scores[..., first:].masked_fill_(later, float("-inf"))
    if hidden is not None:
        scores.masked_fill_(hidden[:, None, None, :], float("-inf"))
    return torch.softmax(scores, dim=-1)


def attention_mass(
    queries: torch.Tensor,
    keys: torch.Tensor,
    columns: torch.Tensor,
    column_count: int,
    positions: torch.Tensor,
    scaling: float,
    *,
    visual: torch.Tensor,
    bias: torch.Tensor | Callable[[slice], torch.Tensor | None] | None = None,
    want_visual: bool = False,
    without_visual: int = 0,
    visual_heads: Sequence[int] | None = None,
) -> Mass:
    """Attention mass by column (segment, with each image apart) of query rows.

    Parameters
    ----------
    queries, keys, positions, scaling
        See ``attention_rows``.
    bias
        As in ``attention_rows``, or a function that gives it for a slice of the rows, so that it
        need not be held for all of them.
    columns
        int64 [batch, keys]: the column that each key belongs to; -1 for keys that are hidden from
        every query.
    column_count
        Number of columns.
    visual
        int64 [batch, visual], on the CPU: slots of the visual keys, filled up with -1 where the
        batch's rows have different numbers of them.
    want_visual
        Whether the weight of each visual key is wanted.
    without_visual
        Number of rows at the beginning for which nothing is wanted of single visual keys.
    visual_heads
        Heads that the weight of each visual key is the mean over; all when not given.

    Returns
    -------
    Mass
        Computed in chunks of rows, so that at most ``CHUNK_ELEMENTS`` weights are held.
    """
    batch, heads, rows, _ = queries.shape
    length = keys.shape[2]
    negative = columns < 0
    hidden = negative if bool(negative.any()) else None
    one_hot = torch.zeros(batch, length, column_count, dtype=torch.float32, device=keys.device)
    one_hot.scatter_(2, columns.clamp(min=0)[..., None], 1.0)
    keys = keys.float()
    size = max(1, CHUNK_ELEMENTS // max(1, batch * heads * length))
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for start in range(0, rows, size):
        rows_here = slice(start, start + size)
        if callable(bias):
            bias_here = bias(rows_here)
        else:
            bias_here = bias if bias is None or bias.shape[2] == 1 else bias[:, :, rows_here]
        weights = attention_rows(
            queries[:, :, rows_here], keys, positions[rows_here], scaling, hidden, bias_here
        )
        mass = torch.matmul(weights, one_hot[:, None])
        wanted = weights[:, :, max(0, without_visual - start) :]
        visual_mean = _visual_mean(wanted, visual)
        nonzero = (visual_mean > 0).sum(-1).int()
        if visual_heads is not None:
            visual_mean = _visual_mean(wanted[:, list(visual_heads)], visual)
        parts.append((mass.transpose(1, 2), visual_mean, nonzero))
    masses, visuals, nonzeros = zip(*parts, strict=True)
    return Mass(
        by_column=torch.cat(masses, dim=1),
        visual_weight=torch.cat(visuals, dim=1) if want_visual else None,
        visual_nonzero=torch.cat(nonzeros, dim=1),
    )


def _visual_mean(weights: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Weight of each visual key [batch, rows, visual], mean over heads; 0 where there is none."""
    count = visual.shape[1]
    first = int(visual[0, 0])
    if torch.equal(visual, torch.arange(first, first + count).expand_as(visual)):
        return weights[..., first : first + count].mean(1)  # one run of slots: no copy is needed
    slots = visual.to(weights.device)[:, None, :]
    at = slots.clamp(min=0)[:, None].expand(-1, weights.shape[1], weights.shape[2], -1)
    return weights.gather(3, at).mean(1).masked_fill(slots < 0, 0.0)
