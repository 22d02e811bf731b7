"""Insertion into a running cache: stepping back, the pass over what goes in, and what it moves.

After an insertion every later token is further back than ``generate`` knows: slots by the
number of inserted tokens, rotary positions by what the inserted images take up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.interventions.pieces import CachedPiece, Piece, VisualPiece, piece_positions
from attnlens.models.cache import cache_parameter, capacity, with_cache
from attnlens.models.family import Parts
from attnlens.models.load import VLM
from attnlens.recording.tap import notify_new_keys, notify_step_back


@dataclass
class InsertionPlan:
    """What goes into the cache from one slot on."""

    pieces: list[tuple[Piece, bool]] = field(default_factory=list)
    """Pieces in order, and whether each is inserted (or fed again)."""

    @property
    def inserted(self) -> int:
        """Number of tokens that are inserted."""
        return sum(piece.count for piece, inserted in self.pieces if inserted)

    def segments(self) -> list[str | None]:
        """Segment of each token; None for one that is fed again."""
        return [
            piece.segment if inserted else None
            for piece, inserted in self.pieces
            for _ in range(piece.count)
        ]


class CacheEditor:
    """Puts tokens into the cache of one generation.

    Attributes
    ----------
    inserted
        Number of tokens inserted so far.
    rope
        Added to the rotary positions of later tokens.
    first_free
        Steps before this one come before an insertion: nothing is stepped back over one.
    """

    def __init__(self, vlm: VLM, parts: Parts, prompt_length: int) -> None:
        self._model = vlm.model
        self._family = vlm.family
        self._parts = parts
        self._prompt_length = prompt_length
        self.inserted = 0
        self.rope = 0
        self.first_free = 1

    def apply(
        self, plan: InsertionPlan, start: int, back: int, cache: Any, now: torch.Tensor
    ) -> None:
        """Step the cache back by ``back`` tokens, and feed a plan from the slot ``start`` on.

        ``now`` are the position ids of the pass that comes next, as ``generate`` made them. A
        static cache without room is refused.
        """
        room = capacity(cache)
        needed = start + sum(piece.count for piece, _ in plan.pieces) + 1
        if room is not None and needed > room:
            raise InputError(
                f"the static cache holds {room} tokens, and {needed} are needed with "
                f"{plan.inserted} inserted ones: pass a larger one, "
                f"{cache_parameter(self._model)}=StaticCache(config, max_cache_len=...)"
            )
        rope = self._family.next_position(now) - back + self.rope
        notify_step_back(self._parts, start, plan.segments())
        _step_back(cache, back)
        slot = start
        run: list[tuple[Any, np.ndarray]] = []
        for piece, _ in plan.pieces:
            positions, after = piece_positions(self._family, piece, rope)
            if isinstance(piece, CachedPiece):
                self._feed(run, slot, cache)
                slot += sum(p.count for p, _ in run) + piece.count
                run = []
                _repeat_cached(cache, piece.slots)
                notify_new_keys(self._parts)
            else:
                run.append((piece, positions))
            rope = after
        self._feed(run, slot, cache)
        self.inserted += plan.inserted
        self.rope = rope - self._family.next_position(now)

    def _feed(self, run: list[tuple[Any, np.ndarray]], start: int, cache: Any) -> None:
        """One pass over adjacent pieces, on top of the cache."""
        if not run:
            return
        embed = self._model.get_input_embeddings()
        device, width = embed.weight.device, embed.weight.shape[1]
        parts, visual, further = [], [], []
        for piece, _ in run:
            seen = isinstance(piece, VisualPiece)
            visual += [seen] * piece.count
            if isinstance(piece, VisualPiece):
                chosen = piece.features[list(piece.kept)]
                chosen = chosen.to(device=device, dtype=embed.weight.dtype)
                parts.append(chosen[:, :width])
                further.append(chosen[:, width:].unflatten(1, (-1, width)))
            else:
                parts.append(embed(torch.tensor(piece.ids, device=device)))
        block = torch.cat(parts)[None]
        options = {}
        if further and further[0].shape[1]:
            shown = torch.tensor([visual], device=device)
            options = self._family.further_features(shown, torch.cat(further))
        rope = np.concatenate([positions for _, positions in run], axis=1)
        slots = torch.arange(start, start + block.shape[1])
        positions = self._family.position_ids(slots, torch.from_numpy(rope)).to(device)
        feed_embedded(self._parts.text, block, positions, start, cache, **options)

    def move(self, cache: Any, options: dict[str, Any], end: int) -> None:
        """Move positions and mask of the pass that comes next by what was inserted.

        ``options`` are its keyword arguments, changed in place, and ``end`` is the slot after its
        last token. A static cache that is full is refused.
        """
        options["position_ids"] = self._family.moved(
            options["position_ids"], self.inserted, self.rope
        )
        room = capacity(cache)
        if room is not None and end > room:
            fed = end - self._prompt_length - self.inserted
            raise InputError(
                f"the static cache of {room} tokens is full after {fed} response "
                f"tokens, since {self.inserted} were inserted: pass a larger one"
            )
        device = options["position_ids"].device
        options["attention_mask"] = torch.ones((1, end), dtype=torch.int64, device=device)


def _step_back(cache: Any, tokens: int) -> None:
    """Take the last tokens out of a dynamic or static cache; others are refused."""
    if not tokens:
        return
    for layer in cache.layers:
        length = getattr(layer, "cumulative_length", None)
        if isinstance(length, torch.Tensor):  # a static layer: what comes after is written over
            length.sub_(tokens)
        elif type(layer).__name__ == "DynamicLayer":
            layer.crop(-tokens)
        else:
            raise InputError(
                f"a cache of {type(layer).__name__} cannot be stepped back: "
                "use a dynamic or a static cache"
            )


def _repeat_cached(cache: Any, slots: tuple[int, ...]) -> None:
    at = list(slots)
    for layer in cache.layers:
        layer.update(layer.keys[:, :, at].clone(), layer.values[:, :, at].clone())


def feed_embedded(
    text: Any, block: torch.Tensor, positions: torch.Tensor, past: int, cache: Any, **options: Any
) -> None:
    """Run a text model over embedded tokens [1, tokens, width], after ``past`` cached ones.

    ``options`` are what else it takes.
    """
    end = past + block.shape[1]
    with torch.no_grad():
        text(
            inputs_embeds=block,
            position_ids=positions,
            attention_mask=torch.ones((1, end), dtype=torch.int64, device=block.device),
            use_cache=True,
            **with_cache(text, cache),
            **options,
        )
