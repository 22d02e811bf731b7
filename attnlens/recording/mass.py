"""From queries and keys to attention mass by segment: pure functions of tensors.

One softmax row of attention is ``softmax(q . k_j * scaling + bias_j)`` over the visible keys j.
Mass of a segment is the sum of that row over the segment's keys: a fraction, and the segments of
a row add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

CHUNK_ELEMENTS = 400_000
"""Largest number of attention weights (float32) held at a time: a CPU keeps them in its cache."""
ELSEWHERE = 40
"""How many times as many are held on other devices, which each call takes long to reach."""

FEWEST_LEFT = 256
"""With fewer keys in the column of the rest, all are multiplied: its mass may be small, and a small
number is less exact as the rest of 1."""
LOG_SUM_ERROR = 1e-5
"""Largest difference between a normaliser and that of our own scores."""

HIDES = -1e4
"""A bias of this or below hides a key: -inf, the lowest number of a dtype, what older masks add."""


@dataclass(frozen=True)
class AttentionRows:
    """Query rows of one or more layers, with the keys that they see.

    Attributes
    ----------
    queries, keys
        One of each per layer, all of the same shape; see ``attention_scores``.
    positions
        int64 [rows], on the CPU: the place among the keys of each query's own, up to which it sees.
    scaling
        Factor on the dot products.
    bias
        float32, broadcastable to [batch, heads, rows, keys]: added to the scaled scores of every
        layer. Or a function from a slice of rows to their bias, so that it is never held whole.
    dropped
        How many keys came before these, which a window's cache has dropped.
    log_sums
        float32 [batch, heads, rows] per layer: see ``attnlens.recording.log_sums``. With it, only
        the keys up to ``KeyColumns.others`` are multiplied.
    """

    queries: Sequence[torch.Tensor]
    keys: Sequence[torch.Tensor]
    positions: torch.Tensor
    scaling: float
    bias: torch.Tensor | Callable[[slice], torch.Tensor | None] | None = None
    dropped: int = 0
    log_sums: Sequence[torch.Tensor] | None = None

    def bias_of(self, rows: slice) -> torch.Tensor | None:
        """Bias of some rows."""
        bias = self.bias
        if callable(bias):
            return bias(rows)
        return bias if bias is None or bias.shape[2] == 1 else bias[:, :, rows]


@dataclass(frozen=True)
class KeyColumns:
    """Which column each key's weight is added to.

    Attributes
    ----------
    of_keys
        int64 [batch, keys]: the column of each key; -1 for keys hidden from every query.
    count
        Number of columns.
    visual_slots
        int64 [batch, visual], on the CPU: slots of the visual keys, filled up with -1 where the
        batch's rows have different numbers of them.
    rest
        The column that most keys belong to, such as those of a long answer.
    others
        From this slot on, all keys belong to ``rest`` or are hidden.
    """

    of_keys: torch.Tensor
    count: int
    visual_slots: torch.Tensor
    rest: int = 0
    others: int = 2**62


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
    visual_by_head
        float32 [batch, rows wanted, heads chosen, visual] or None: weight of each visual key for
        single heads.
    hidden
        int32 [batch or 1, rows, heads or 1, columns] or None: number of each column's keys, up to
        the query's own, that the mask hides from a head; None where it hides none.
    """

    by_column: torch.Tensor
    visual_weight: torch.Tensor | None
    visual_nonzero: torch.Tensor
    hidden: torch.Tensor | None = None
    visual_by_head: torch.Tensor | None = None


def attention_scores(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot products, float32 [batch, heads, rows, keys].

    Parameters
    ----------
    queries
        [batch, heads, rows, dimension], after rotary embedding.
    keys
        [batch, key heads, keys, dimension], after rotary embedding; every group of
        ``heads / key heads`` consecutive query heads shares a key head.
    scaling
        Factor on the dot products.
    out
        float32, flat and large enough: memory for the result.
    """
    batch, heads, rows, dimension = queries.shape
    key_heads, length = keys.shape[1], keys.shape[2]
    scaled = queries.float() * scaling
    grouped = scaled.reshape(batch * key_heads, heads // key_heads * rows, dimension)
    if out is not None:
        out = _piece(out, (*grouped.shape[:2], length))
    scores = torch.bmm(grouped, keys.float().flatten(0, 1).mT, out=out)
    return scores.reshape(batch, heads, rows, length)


def _piece(memory: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return memory[: math.prod(shape)].view(*shape)


def attention_weights(
    scores: torch.Tensor,
    positions: torch.Tensor,
    hidden: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    log_sums: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention rows, float32 [batch, heads, rows, keys]; each adds up to 1.

    Parameters
    ----------
    scores
        As ``attention_scores`` gives them; overwritten.
    positions, bias
        See ``AttentionRows``.
    hidden
        bool [batch, keys]: keys that no query sees (padding).
    log_sums
        float32 [batch, heads, rows]: normalisers of rows that may have more keys than these; such
        rows do not add up to 1.
    out
        As in ``attention_scores``.
    """
    length = scores.shape[3]
    if bias is not None:
        scores += bias
    first = int(positions.min()) + 1  # every query sees the keys before
    if first < length:
        slots = torch.arange(first, length, device=scores.device)
        later = slots[None, :] > positions.to(scores.device)[:, None]
        scores[..., first:].masked_fill_(later, float("-inf"))
    if hidden is not None:
        scores.masked_fill_(hidden[:, None, None, :], float("-inf"))
    if log_sums is not None:
        return scores.sub_(log_sums[..., None]).exp_()
    if out is not None:
        out = _piece(out, scores.shape)
    return torch.softmax(scores, dim=-1, out=out)


def attention_mass(
    attention: AttentionRows,
    columns: KeyColumns,
    *,
    want_visual: bool = False,
    without_visual: int = 0,
    averaged_heads: Sequence[Sequence[int] | None] | None = None,
    map_heads: Sequence[Sequence[int]] | None = None,
) -> list[Mass]:
    """Attention mass of query rows by column (a segment, or one image of it).

    Parameters
    ----------
    attention, columns
        The rows, and what is added up.
    want_visual
        Whether to keep the weight of each visual key.
    without_visual
        Number of rows at the beginning for which nothing is kept about single visual keys.
    averaged_heads
        For each layer the heads over which the weight of a visual key is averaged; None for all.
    map_heads
        For each layer the heads for which the weight of each visual key is kept.

    Returns
    -------
    list of Mass
        One for each layer, on the CPU. Computed in float32 whatever the model runs in, and in
        chunks of layers and rows that hold at most ``CHUNK_ELEMENTS`` weights (on other devices
        than a CPU ``ELSEWHERE`` times as many), or those of one row.
    """
    queries, keys = attention.queries, attention.keys
    batch, heads, rows, _ = queries[0].shape
    length, device = keys[0].shape[2], keys[0].device
    negative = columns.of_keys < 0
    hidden = negative if bool(negative.any()) else None
    one_hot = torch.zeros(batch, length, columns.count, dtype=torch.float32, device=device)
    one_hot.scatter_(2, columns.of_keys.clamp(min=0)[..., None], (~negative).float()[..., None])
    log_sums = attention.log_sums if columns.others + FEWEST_LEFT < length else None
    if log_sums is not None and not _are_ours(log_sums, attention, hidden):
        log_sums = None
    shared = length if log_sums is None else columns.others
    weights_of_row = max(1, batch * heads * shared)
    at_once = CHUNK_ELEMENTS * (1 if device.type == "cpu" else ELSEWHERE)
    layers_at_once = max(1, at_once // max(1, weights_of_row * rows))
    rows_at_once = max(1, at_once // weights_of_row)
    results: list[Mass] = []
    hidden_parts: list[torch.Tensor] = []
    hidden_keys: torch.Tensor | None = None
    map_heads = map_heads or [()] * len(queries)
    # used by one chunk after the other: to touch new memory takes as long as the product
    of_scores, of_weights = (
        torch.empty(weights_of_row * rows_at_once, dtype=torch.float32, device=device)
        if rows_at_once < rows
        else None
        for _ in range(2)
    )
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        for first in range(0, len(queries), layers_at_once):
            layers = range(first, min(first + layers_at_once, len(queries)))
            converted = [keys[i].float() for i in layers]
            parts: list[tuple[torch.Tensor, ...]] = []
            # places along the axis of layers and heads
            mapped = [heads * place + h for place, i in enumerate(layers) for h in map_heads[i]]
            for start in range(0, rows, rows_at_once):
                piece = slice(start, start + rows_at_once)
                bias, positions = attention.bias_of(piece), attention.positions[piece]
                seen = min(length, int(positions.max()) + 1)  # no query of these sees later keys
                end = min(seen, shared)
                # layers are side by side along the axis of heads
                scores = [
                    attention_scores(
                        queries[i][:, :, piece], k[:, :, :end], attention.scaling, out=of_scores
                    )
                    for i, k in zip(layers, converted, strict=True)
                ]
                if bias is not None and first == 0:  # the same for all layers
                    hidden_parts.append(
                        _hidden_keys(bias[..., :seen], positions, one_hot[:, :seen])
                    )
                bias = None if bias is None else bias[..., :end]
                if bias is not None and bias.shape[1] > 1:
                    bias = bias.repeat(1, len(layers), 1, 1)
                sums = None
                if log_sums is not None:
                    sums = torch.cat([log_sums[i][:, :, piece] for i in layers], dim=1)
                joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)
                padding = None if hidden is None else hidden[:, :end]
                weights = attention_weights(
                    joined, positions, padding, bias, log_sums=sums, out=of_weights
                )
                # the few columns on the left: a CPU is several times as fast
                mass = torch.matmul(one_hot[:, :end].mT, weights.reshape(batch, -1, end).mT).mT
                mass = mass.reshape(batch, len(layers), heads, len(positions), columns.count)
                if end < seen:
                    mass[..., columns.rest] = 0
                    mass[..., columns.rest] = (1 - mass.sum(-1)).clamp(min=0)
                wanted = weights[:, :, max(0, without_visual - start) :]
                visual = torch.where(columns.visual_slots < end, columns.visual_slots, -1)
                by_head = _on_visual(wanted, visual, mapped) if mapped else wanted[:, :0, :, :0]
                wanted = wanted.unflatten(1, (len(layers), heads))
                visual_mean = _visual_mean(wanted, visual)
                nonzero = (visual_mean > 0).sum(-1).int()
                for place, i in enumerate(layers):
                    chosen = None if averaged_heads is None else averaged_heads[i]
                    if chosen is not None:
                        of_heads = wanted[:, place : place + 1, list(chosen)]
                        visual_mean[:, place] = _visual_mean(of_heads, visual)[:, 0]
                visual_mean = visual_mean if want_visual else visual_mean[..., :0]
                parts.append((mass.transpose(2, 3), visual_mean, nonzero, by_head.transpose(1, 2)))
            masses, visuals, nonzeros, by_heads = (
                (torch.cat(several, dim=axis) if len(several) > 1 else several[0]).cpu()
                for axis, several in zip((2, 2, 2, 1), zip(*parts, strict=True), strict=True)
            )
            of_layers = by_heads.split([len(map_heads[i]) for i in layers], dim=2)
            if first == 0 and hidden_parts:
                counts = torch.cat(hidden_parts, dim=1).cpu()
                hidden_keys = counts if bool(counts.any()) else None
            results += [
                Mass(
                    by_column=masses[:, place],
                    visual_weight=visuals[:, place] if want_visual else None,
                    visual_nonzero=nonzeros[:, place],
                    hidden=hidden_keys,
                    visual_by_head=of_layers[place] if map_heads[i] else None,
                )
                for place, i in enumerate(layers)
            ]
    return results


def _are_ours(
    log_sums: Sequence[torch.Tensor], attention: AttentionRows, hidden: torch.Tensor | None
) -> bool:
    """Whether normalisers are those of our scores, as the last row of each layer tells."""
    last = slice(len(attention.positions) - 1, None)
    bias, positions = attention.bias_of(last), attention.positions[last]
    end = int(positions[0]) + 1
    for query, key, sums in zip(attention.queries, attention.keys, log_sums, strict=True):
        scores = attention_scores(query[:, :, last], key[:, :, :end], attention.scaling)
        if bias is not None:
            scores += bias[..., :end]
        if hidden is not None:
            scores.masked_fill_(hidden[:, None, None, :end], float("-inf"))
        same = torch.allclose(scores.logsumexp(-1), sums[:, :, last], rtol=0, atol=LOG_SUM_ERROR)
        if not same or not bool(sums.isfinite().all()):
            return False
    return True


def mass_on_sets(attention: AttentionRows, sets: torch.Tensor) -> torch.Tensor:
    """Attention mass on sets of keys, for one query of one sequence in several layers.

    Faster than ``attention_mass`` for a single row. ``sets`` is float32 [keys, sets]: 1 where a key
    belongs to a set, else 0. Returns float32 [layers, heads, sets], on the CPU.
    """
    queries, keys = attention.queries, attention.keys
    _, heads, _, dimension = queries[0].shape
    layers, (_, key_heads, length, _) = len(queries), keys[0].shape
    grouped = (1, key_heads, heads // key_heads, dimension)
    with torch.autocast(keys[0].device.type, enabled=False):
        products = [
            # keys on the left: a CPU reads them about 1.6 times as fast for a single row
            torch.matmul(k.float(), (q.float() * attention.scaling).reshape(grouped).mT)
            for q, k in zip(queries, keys, strict=True)
        ]
        scores = torch.cat(products, dim=1).mT.reshape(1, layers * heads, 1, length)
        bias = attention.bias_of(slice(None))
        if bias is not None and bias.shape[1] > 1:
            bias = bias.repeat(1, layers, 1, 1)
        weights = attention_weights(scores, attention.positions, bias=bias)
        return torch.matmul(weights[0, :, 0], sets).reshape(layers, heads, -1).cpu()


def _hidden_keys(
    bias: torch.Tensor, positions: torch.Tensor, one_hot: torch.Tensor
) -> torch.Tensor:
    """Count the keys, up to a query's own, that a bias hides: int32 [batch, rows, heads, columns].

    ``one_hot`` is [batch, keys, columns].
    """
    slots = torch.arange(bias.shape[3], device=bias.device)
    hidden = (bias <= HIDES) & (slots <= positions.to(bias.device)[:, None])
    heads, rows = hidden.shape[1:3]
    counts = torch.matmul(hidden.float().flatten(1, 2), one_hot)
    return counts.int().unflatten(1, (heads, rows)).transpose(1, 2)


def _visual_mean(weights: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Weight of each visual key [batch, layers, rows, visual], mean over heads; 0 without one.

    ``weights`` is [batch, layers, heads, rows, keys].
    """
    return _on_visual(weights.flatten(1, 2), visual).unflatten(1, weights.shape[1:3]).mean(2)


def _on_visual(
    weights: torch.Tensor, visual: torch.Tensor, heads: Sequence[int] | None = None
) -> torch.Tensor:
    """Weight of each visual key [batch, heads, rows, visual]; 0 without one.

    ``weights`` is [batch, heads, rows, keys]. With ``heads``, only theirs, in a new tensor.
    """
    count = visual.shape[1]
    first = int(visual[0, 0])
    if first >= 0 and torch.equal(visual, torch.arange(first, first + count).expand_as(visual)):
        found = weights[..., first : first + count]  # one run of slots: no copy is needed
        return found if heads is None else found[:, heads]
    if heads is not None:
        weights = weights[:, heads]
    slots = visual.to(weights.device)[:, None, None, :]
    at = slots.clamp(min=0).expand(-1, *weights.shape[1:3], -1)
    return weights.gather(3, at).masked_fill(slots < 0, 0.0)


Part = tuple[list[int], Mass]
"""Key slots of some queries, and their mass in one layer."""


@dataclass(frozen=True)
class RecordedRows:
    """Everything recorded in one layer: ``Mass`` as arrays, in the order of the key slots.

    ``positions`` are the queries' key slots, int64 [rows]. ``visual_weight``, ``visual_nonzero``
    and ``visual_by_head`` have only the rows that are steps; ``hidden`` has all of the batch and
    the heads.
    """

    positions: np.ndarray
    mass: np.ndarray
    visual_weight: np.ndarray | None
    visual_nonzero: np.ndarray
    hidden: np.ndarray | None = None
    visual_by_head: np.ndarray | None = None


def join_rows(parts: list[Part], complete: set[int], first_step: int) -> RecordedRows:
    """Join what was computed at different times.

    ``complete`` are the key slots that all layers have seen; others are left out. ``first_step`` is
    the key slot of the query of step 0.
    """
    positions = np.array([p for here, _ in parts for p in here], dtype=np.int64)
    order = _in_order(positions, complete)
    if not len(order):
        empty = np.zeros((0, 0, 0, 0), np.float32)
        return RecordedRows(positions[order], empty, None, np.zeros((0, 0), np.int32))
    maps = [m.visual_weight for _, m in parts if m.visual_weight is not None]
    by_head = [m.visual_by_head for _, m in parts if m.visual_by_head is not None]
    steps = _in_order(positions[positions >= first_step], complete)
    hidden = None
    if any(m.hidden is not None for _, m in parts):
        none = torch.zeros((), dtype=torch.int32)
        counts = [(none if m.hidden is None else m.hidden).expand_as(m.by_column) for _, m in parts]
        hidden = torch.cat(counts, dim=1).numpy()[:, order]
    return RecordedRows(
        positions=positions[order],
        mass=torch.cat([m.by_column for _, m in parts], dim=1).numpy()[:, order],
        visual_weight=torch.cat(maps, dim=1).numpy()[:, steps] if maps else None,
        visual_nonzero=torch.cat([m.visual_nonzero for _, m in parts], dim=1).numpy()[:, steps],
        hidden=hidden,
        visual_by_head=torch.cat(by_head, dim=1).numpy()[:, steps] if by_head else None,
    )


def _in_order(positions: np.ndarray, complete: set[int]) -> np.ndarray:
    """Return the indices of the complete positions, in their order."""
    order = np.argsort(positions, kind="stable")
    return order[[int(p) in complete for p in positions[order]]]


def rows_before(parts: list[Part], slot: int) -> list[Part]:
    """Keep the rows whose queries come before a slot."""
    kept = []
    for positions, mass in parts:
        wanted = [i for i, p in enumerate(positions) if p < slot]
        without_visual = len(positions) - mass.visual_nonzero.shape[1]  # prompt rows come first
        visual = [i - without_visual for i in wanted if i >= without_visual]
        weight, by_head = mass.visual_weight, mass.visual_by_head
        if wanted:
            left = Mass(
                by_column=mass.by_column[:, wanted],
                visual_weight=None if weight is None else weight[:, visual],
                visual_nonzero=mass.visual_nonzero[:, visual],
                hidden=None if mass.hidden is None else mass.hidden[:, wanted],
                visual_by_head=None if by_head is None else by_head[:, visual],
            )
            kept.append(([positions[i] for i in wanted], left))
    return kept
