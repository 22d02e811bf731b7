"""Changes of attention scores, applied to the mask that a layer's attention is computed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnlens.recording.masks import as_bias
from attnlens.recording.mass import attention_scores
from attnlens.recording.tap import LayerAttention

if TYPE_CHECKING:
    from attnlens.interventions.base import Edit
    from attnlens.models.prompt import Prompt


@dataclass
class EditScope:
    """Which rows, keys and heads an edit acts on."""

    edit: Edit
    columns: torch.Tensor
    """int64 [keys]: slots of the keys in reach."""
    heads: dict[int, tuple[int, ...]]
    """Heads in reach, by layer."""
    start: int
    stop: int | None = None
    """Rows with slots from ``start`` on, and before ``stop`` if it is set."""


class ScoreEditor:
    """Adds the biases of edits to attention masks; rows out of reach keep the mask they had."""

    def __init__(self) -> None:
        self.scopes: list[EditScope] = []
        self._past = 0

    def add(
        self, edit: Edit, prompt: Prompt, heads: dict[int, tuple[int, ...]], start: int
    ) -> EditScope:
        """Let an edit act on rows from a slot on."""
        columns = torch.tensor(list(edit.reach(prompt)), dtype=torch.int64)
        scope = EditScope(edit, columns, heads, start)
        self.scopes.append(scope)
        return scope

    def step_back(self, scopes: Sequence[EditScope], start: int, segments: Sequence[Any]) -> None:
        """Move the bounds of scopes with the tokens that they belong to.

        See ``attnlens.recording.tap.Listener.step_back``. Rows of inserted tokens are in reach
        where the tokens around them are.
        """
        again = [i for i, segment in enumerate(segments) if segment is None]

        def moved(slot: int) -> int:
            place = slot - start
            if place < 0:
                return slot
            if place < len(again):
                return start + again[place]
            return start + len(segments) + place - len(again)

        for scope in scopes:
            scope.start = moved(scope.start)
            scope.stop = None if scope.stop is None else moved(scope.stop)

    def begin_pass(self, tokens: int, past: int) -> None:
        """See ``attnlens.recording.tap.Editor``."""
        self._past = past

    @torch.no_grad()
    def edit(self, seen: LayerAttention) -> torch.Tensor | None:
        """See ``attnlens.recording.tap.Editor``."""
        query, key, mask = seen.query, seen.key, seen.mask
        end = self._past + query.shape[2]
        for scope in self.scopes:
            heads = scope.heads.get(seen.layer)
            first = max(scope.start, self._past) - self._past
            last = (end if scope.stop is None else min(scope.stop, end)) - self._past
            if heads is None or first >= last:
                continue
            columns = scope.columns = scope.columns.to(query.device)
            scores = attention_scores(query[:, :, first:last], key[:, :, columns], seen.scaling)
            bias = torch.zeros_like(scores)
            chosen = list(heads)
            bias[:, chosen] = scope.edit.bias(scores[:, chosen])
            additive = additive_mask(mask, query, key, self._past)
            additive = additive.expand(-1, bias.shape[1], -1, -1).clone()
            additive[:, :, first:last, columns] += bias.to(additive.dtype)
            mask = additive
        return mask


def additive_mask(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, past: int
) -> torch.Tensor:
    """Additive mask [batch, 1 or heads, rows, keys] that stands for the one given."""
    rows, length = query.shape[2], key.shape[2]
    if mask is None:
        seen = torch.ones((rows, length), dtype=torch.bool, device=query.device)
        mask = seen.tril(past)[None, None]  # keys of a static cache reach beyond the last row
    additive: Any = as_bias(mask).to(query.dtype)
    return additive.expand(query.shape[0], -1, rows, -1)
