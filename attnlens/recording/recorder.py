"""The recorder: queries are kept as they come, attention is computed later.

At each decoding pass a layer's query (after rotary embedding) is copied into a queue, and the
layer's newest keys are remembered. When the queue is full, and at the end, one batched product per
layer turns the waiting queries and the keys into mass by segment. A cache only ever grows at its
end, so the keys of an earlier step are the first part of the keys of a later one; the recorder
checks that this holds. A layer that attends to a window drops keys, so its older keys stay in the
queue and the newest of each step is added to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from attnlens.recording.layout import InsertedKeys, KeyLayout
from attnlens.recording.masks import as_bias, check_padding, select_rows, stack_biases
from attnlens.recording.mass import (
    AttentionRows,
    KeyColumns,
    Mass,
    Part,
    RecordedRows,
    attention_mass,
    join_rows,
    rows_before,
)
from attnlens.recording.tap import LayerAttention, Pass

_ONLY_ROW = torch.zeros(1, dtype=torch.int64)


@dataclass
class _CurrentPass:
    """The forward pass that is under way."""

    positions: list[int]
    """Key slots of the queries that are wanted."""
    rows: list[int]
    """Their places within the pass."""
    waits: bool
    """Whether the queries wait in the queue; else mass is computed at once."""
    tokens: int
    """Number of queries that every layer must have."""
    keys: int
    """Number of keys that every layer must have that sees all."""
    past: int
    """Number of cached tokens before the pass."""
    seen: set[int] = field(default_factory=set)
    """Layers that have been seen."""
    mask: tuple[Any, torch.Tensor | None] = (None, None)
    """The mask of the last layer that was seen, and its only row."""

    def only_row(self, mask: Any) -> torch.Tensor | None:
        """Select the row of a mask for one query; layers with the same mask share it."""
        if self.mask[0] is not mask:
            self.mask = (mask, select_rows(mask, _ONLY_ROW))
        return self.mask[1]


@dataclass
class _LayerQueue:
    """The queries of one layer that wait for their keys."""

    queries: list[torch.Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    masks: list[torch.Tensor | None] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    """How many keys the layer's cache had dropped at each query."""
    held: list[torch.Tensor] = field(default_factory=list)
    """Keys that together are all that any of the queries sees."""
    newest: torch.Tensor = field(init=False)
    """The layer's cache at the last query."""
    scaling: float = 1.0

    def add(
        self, seen: LayerAttention, position: int, dropped: int, mask: torch.Tensor | None
    ) -> None:
        """Add the query of a pass that has one, with its row of the mask."""
        # a copy: compiled decoding writes the next step's query over this one
        self.queries.append(seen.query.clone())
        self.positions.append(position)
        self.masks.append(mask)
        self.dropped.append(dropped)
        if dropped == self.dropped[0]:
            self.held = [seen.key]
        else:
            self.held.append(seen.key[:, :, -1:].clone())
        self.newest, self.scaling = seen.key, seen.scaling


class AttentionRecorder:
    """Listens to the attention of every pass and keeps mass by column.

    Parameters
    ----------
    layout
        Which key belongs to which column.
    layers
        Indices of the layers to record; or, by index, how many keys a layer's queries see, None for
        all.
    visual_map
        Whether to keep the weight of each visual key, mean over heads; or the heads, by layer, over
        which it is averaged.
    prompt_positions
        Prompt slots whose rows are recorded in addition to the last one.
    every
        How many decoding passes wait before mass is computed.
    map_heads
        Heads, by layer, for which the weight of each visual key is kept.
    checks_cache
        Whether to compare the cache with the keys that were written into it.
    """

    def __init__(
        self,
        layout: KeyLayout,
        layers: Sequence[int] | Mapping[int, int | None],
        *,
        visual_map: bool | Mapping[int, Sequence[int]] = False,
        prompt_positions: Sequence[int] = (),
        every: int = 32,
        map_heads: Mapping[int, Sequence[int]] | None = None,
        checks_cache: bool = True,
    ) -> None:
        self.layout = layout
        self.layers = tuple(layers)
        windows = dict(layers) if isinstance(layers, Mapping) else {}
        self._windows = {layer: keys for layer, keys in windows.items() if keys is not None}
        full = [layer for layer in self.layers if layer not in self._windows]
        self._watched = (full or self.layers)[0]
        """The layer whose cache is checked."""
        self.inserted = InsertedKeys()
        self.ids: dict[int, torch.Tensor] = {}
        """Token ids [batch] fed in at a key slot, for response slots and the last prompt slot."""
        self._visual_map = bool(visual_map)
        self._averaged_heads = dict(visual_map) if isinstance(visual_map, Mapping) else {}
        self._prompt_positions = frozenset(prompt_positions)
        self._every = every
        self.map_heads: Mapping[int, Sequence[int]] = dict(map_heads or {})
        self._pass: _CurrentPass | None = None
        self._end: int | None = None
        """Key slot after the last token that was fed; None before the first pass."""
        self._whole: torch.Tensor | None = None
        """Ids [batch, tokens] of the last pass, where it had no cached tokens before it."""
        self._fed: torch.Tensor | None = None
        self._done: set[int] = set()
        self._queues: dict[int, _LayerQueue] = {}
        self._results: dict[int, list[Part]] = {i: [] for i in self.layers}
        self._written = _WrittenKeys() if checks_cache else None
        self._columns_made: dict[tuple, KeyColumns] = {}

    # Listener interface

    def tokens(self, input_ids: torch.Tensor) -> None:
        """See the token ids of the pass that comes next."""
        self._fed = input_ids

    def begin_pass(self, begun: Pass) -> None:
        """Choose the rows of the pass that are wanted; see ``Listener``."""
        tokens, past = begun.tokens, begun.past
        first_step = self.layout.prompt_length - 1
        if past <= first_step < past + tokens:
            check_padding(self.layout.segments, begun.mask, first_step - past, own=begun.own_mask)
        wanted = [
            p
            for p in range(past, past + tokens)
            if (p >= first_step or p in self._prompt_positions) and p not in self.inserted
        ]
        if past == 0 and self._is_repeated():  # as generation without a cache does
            wanted = [p for p in wanted if p not in self._done]
        else:
            self._check_follows(wanted, past)
        self._end = past + tokens
        self._whole = self._fed if past == 0 else None
        waits = tokens == 1 and not begun.offloaded
        full = any(len(q.positions) == self._every for q in self._queues.values())
        # a window's queue takes the newest key of each pass, so it must not miss one
        waiting = self.waiting_slots if self._windows else []
        gap = bool(waiting and wanted) and wanted[0] != waiting[-1] + 1
        if not waits or full or gap:
            self.flush()
        rows = [p - past for p in wanted]
        self._pass = _CurrentPass(wanted, rows, waits, tokens, begun.keys, past)
        self._done.update(wanted)
        if self._fed is not None and self._fed.shape[1] in (tokens, past + tokens):
            start = past + tokens - self._fed.shape[1]
            for p in range(max(past, first_step), past + tokens):
                self.ids[p] = self._fed[:, p - start]
        self._fed = None

    def end_pass(self) -> None:
        """See ``Listener``."""
        self._pass = None

    def _is_repeated(self) -> bool:
        """Whether all tokens are fed again, and one more."""
        before, fed = self._whole, self._fed
        return before is not None and fed is not None and torch.equal(fed[:, :-1], before)

    def _check_follows(self, wanted: Sequence[int], past: int) -> None:
        """Refuse a pass that does not continue where the last one ended."""
        if self._done.intersection(wanted):
            raise RuntimeError(
                "a recording holds one generation, and this is a second one: "
                "open a new `with attnlens.record(...)` block for it"
            )
        end = past if self._end is None else self._end
        # inserted keys may come without a pass
        if past >= end and all(slot in self.inserted for slot in range(end, past)):
            return
        raise RuntimeError(
            f"a pass starts from {past} cached keys, but {self._end} were fed before: the cache no "
            "longer holds the keys of earlier steps (a cropped or compressed cache, or gradient "
            "checkpointing in training mode, which keeps none), or this is a second generation: "
            "record one greedy or sampled generation with a dynamic or static cache"
        )

    def attention(self, seen: LayerAttention) -> None:
        """Keep or compute what is wanted of one layer's attention; see ``Listener``."""
        current, layer, query, key = self._pass, seen.layer, seen.query, seen.key
        if current is None or layer not in self._results or layer in current.seen:
            return  # outside any pass, or computed again for a backward pass
        current.seen.add(layer)
        keys, window = current.keys, self._windows.get(layer)
        if self._windows and keys != current.past + current.tokens:
            raise RuntimeError(
                "some layers attend to a window, which cannot be recorded with a static cache: "
                "record with a dynamic cache"
            )
        if window is not None:
            keys = min(current.past, window - 1) + current.tokens
        if (query.shape[2], key.shape[2]) != (current.tokens, keys):
            raise RuntimeError(
                f"layer {layer} attends with {query.shape[2]} queries to {key.shape[2]} keys where "
                f"the pass has {current.tokens} and {keys}: its cache drops or compresses "
                "keys, so that which key is which is lost: record with a dynamic or static cache "
                "that keeps them all"
            )
        if not current.positions:
            return
        if query.shape[0] % self.layout.batch:
            raise RuntimeError(
                f"the model runs a batch of {query.shape[0]} where the prompt has "
                f"{self.layout.batch}: record the batch that is generated"
            )
        # a window's cache has dropped what came before
        dropped = current.past + current.tokens - keys if window is not None else 0
        if current.waits:
            (position,) = current.positions
            queue = self._queues.setdefault(layer, _LayerQueue())
            queue.add(seen, position, dropped, current.only_row(seen.mask))
            if layer == self._watched and self._written is not None:
                self._written.add(position, key[:, 0, position - dropped])
            return
        rows = torch.tensor(current.rows)

        def bias(piece: slice) -> torch.Tensor | None:
            selected = select_rows(seen.mask, rows[piece])
            return None if selected is None else as_bias(selected)

        first, last = current.rows[0], current.rows[-1]
        gapless = last - first + 1 == len(rows)
        queries = query[:, :, first : last + 1] if gapless else query[:, :, rows]
        positions = torch.tensor(current.positions) - dropped
        sums = None
        if seen.log_sums is not None:
            of_rows = slice(first, last + 1) if gapless else rows
            sums = [seen.log_sums[:, :, of_rows]]
        self._compute(
            [layer], AttentionRows([queries], [key], positions, seen.scaling, bias, dropped, sums)
        )

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """Forget what was recorded from a slot on; see ``Listener``."""
        self.flush()
        for layer, parts in self._results.items():
            self._results[layer] = rows_before(parts, start)
        self._done = {p for p in self._done if p < start}
        if self._written is not None:
            self._written.forget(start)
        self._end = start
        self.ids = {p: ids for p, ids in self.ids.items() if p < start}
        self.inserted.add(start, segments)
        self._columns_made = {}

    # The queue

    @property
    def waiting_slots(self) -> list[int]:
        """Key slots of the queries that wait for their mass."""
        queue = self._queues.get(self._watched)
        return [] if queue is None else queue.positions

    def waiting(self, layers: Sequence[int]) -> Iterator[tuple[list[int], AttentionRows]]:
        """Group the waiting queries of layers: each group needs only one product."""
        groups: dict[tuple, list[int]] = {}
        for layer in layers:
            queue = self._queues.get(layer)
            if queue is not None:
                masks = tuple(map(id, queue.masks))  # layers share the masks of a step
                kind = (tuple(queue.positions), tuple(queue.dropped), masks)
                of_keys = (queue.newest.shape, queue.newest.device)
                groups.setdefault((*kind, *of_keys, queue.scaling), []).append(layer)
        for group in groups.values():
            queues = [self._queues[layer] for layer in group]
            queries = [_joined(q.queries) for q in queues]
            keys = [_joined(q.held) for q in queues]
            one = queues[0]
            before = one.dropped[0]
            first = [dropped - before for dropped in one.dropped]
            bias = stack_biases(one.masks, first, keys[0].shape[2], keys[0].device)
            positions = torch.tensor(one.positions) - before
            yield group, AttentionRows(queries, keys, positions, one.scaling, bias, before)

    def drop_waiting(self) -> None:
        """Forget the waiting queries and their keys."""
        self._queues.clear()

    @torch.no_grad()
    def flush(self) -> None:
        """Turn the waiting queries into mass and forget them and the keys.

        Raises
        ------
        RuntimeError
            If the cache no longer holds the keys of earlier steps.
        """
        watched = self._queues.get(self._watched)
        if watched is not None and self._written is not None:
            self._written.check(watched.newest, watched.dropped[-1])
        for layers, attention in self.waiting(list(self._queues)):
            self._compute(layers, attention)
        self.drop_waiting()

    # Mass

    def _compute(self, layers: Sequence[int], attention: AttentionRows) -> None:
        """Compute mass, and count keys that a window's cache has dropped as hidden."""
        dropped = attention.dropped
        positions = (attention.positions + dropped).tolist()
        key, averaged, mapped = attention.keys[0], self._averaged_heads, self.map_heads
        columns = self._columns(key.shape[2] + dropped, key.shape[0], key.device)
        masses = attention_mass(
            attention,
            _without_first(columns, dropped),
            want_visual=self._visual_map,
            # prompt rows come first
            without_visual=sum(p < self.layout.prompt_length - 1 for p in positions),
            averaged_heads=[averaged.get(layer) for layer in layers] if averaged else None,
            map_heads=[mapped.get(layer, ()) for layer in layers] if mapped else None,
        )
        if dropped:
            counts = _counts(columns.of_keys[:, :dropped], columns.count)
            masses = [_with_hidden(mass, counts) for mass in masses]
        for layer, mass in zip(layers, masses, strict=True):
            self._results[layer].append((positions, mass))

    def _columns(self, length: int, batch: int, device: torch.device) -> KeyColumns:
        """Columns of the keys that there are now, made once for all layers.

        In a chunked prefill the last visual keys may not be there yet: their slots become -1.
        """
        kind = (length, batch, device)
        if kind in self._columns_made:
            return self._columns_made[kind]
        layout = self.layout
        known = layout.columns[:, :length]
        columns = np.full((len(known), length), layout.response_column, known.dtype)
        columns[:, : known.shape[1]] = known
        for slot, segment in self.inserted.items():
            if slot < length:
                columns[:, slot] = layout.names.index(segment)
        visual = np.where(layout.visual_slots < length, layout.visual_slots, -1)
        of_others = ((columns != layout.response_column) & (columns >= 0)).any(axis=0)
        repeats = batch // layout.batch
        made = KeyColumns(
            torch.from_numpy(columns.repeat(repeats, axis=0)).to(device),
            len(layout.names),
            torch.from_numpy(visual.repeat(repeats, axis=0)),
            layout.response_column,
            int(of_others.nonzero()[0].max(initial=-1)) + 1,
        )
        self._columns_made = {kind: made}
        return made

    # What was recorded

    def take_computed(self) -> dict[int, list[Part]]:
        """Hand over what was computed, by layer, and keep no copy."""
        taken = self._results
        self._results = {layer: [] for layer in self.layers}
        return taken

    def rows(self) -> dict[int, RecordedRows]:
        """Everything recorded so far, by layer; passes that were interrupted are left out."""
        complete = set.intersection(
            *({p for positions, _ in parts for p in positions} for parts in self._results.values())
        )
        first_step = self.layout.prompt_length - 1
        return {
            layer: join_rows(parts, complete, first_step) for layer, parts in self._results.items()
        }


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Join [batch, heads, places, dimension] along the places."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _without_first(columns: KeyColumns, dropped: int) -> KeyColumns:
    """Leave out the keys that a window's cache has dropped."""
    if not dropped:
        return columns
    visual = (columns.visual_slots - dropped).clamp(min=-1)
    return replace(
        columns,
        of_keys=columns.of_keys[:, dropped:],
        visual_slots=visual,
        others=max(0, columns.others - dropped),
    )


def _counts(of_keys: torch.Tensor, count: int) -> torch.Tensor:
    """Count keys by column: int32 [batch, columns]; padding counts as none."""
    one_hot = torch.nn.functional.one_hot(of_keys.clamp(min=0), count)
    return (one_hot * (of_keys >= 0)[..., None]).sum(1).int().cpu()


def _with_hidden(mass: Mass, counts: torch.Tensor) -> Mass:
    """Count keys [batch, columns] as hidden from every row and head."""
    hidden = counts[:, None, None, :].expand_as(mass.by_column)
    return replace(mass, hidden=hidden if mass.hidden is None else mass.hidden + hidden)


class _WrittenKeys:
    """One key of every step, as the step wrote it, to see whether the cache still holds it."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._joined: torch.Tensor | None = None  # of the first slots
        self._new: list[torch.Tensor] = []  # of the others

    def add(self, slot: int, key: torch.Tensor) -> None:
        """Remember the key of a slot, [batch, dimension]."""
        self._slots.append(slot)
        self._new.append(key.clone())

    def forget(self, start: int) -> None:
        """Forget the slots from ``start`` on."""
        keys = self._join()
        kept = [i for i, slot in enumerate(self._slots) if slot < start]
        self._slots = [self._slots[i] for i in kept]
        self._joined = keys[:, kept] if keys is not None and kept else None

    def check(self, keys: torch.Tensor, dropped: int) -> None:
        """Refuse a layer's keys that differ from what was remembered.

        ``keys`` is the cache, and ``dropped`` how many of the first keys it no longer holds.
        """
        then = self._join()
        if then is None:
            return
        there = [i for i, slot in enumerate(self._slots) if slot >= dropped]
        places = torch.tensor([self._slots[i] - dropped for i in there], device=keys.device)
        gone = self._slots[-1] >= dropped + keys.shape[2]
        if gone or not torch.equal(keys[:, 0, places], then[:, there]):
            raise RuntimeError(
                "the cache no longer holds the keys of earlier steps (beam search, assisted "
                "generation, a cropped or a quantised cache): record greedy or sampled generation "
                "with a dynamic or static cache"
            )

    def _join(self) -> torch.Tensor | None:
        if self._new:
            before = [] if self._joined is None else [self._joined]
            self._joined = torch.cat([*before, torch.stack(self._new, dim=1)], dim=1)
            self._new = []
        return self._joined
