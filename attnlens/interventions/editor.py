"""Changes of attention scores, applied to the mask that a layer's attention is computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnlens.recording.masks import as_bias

if TYPE_CHECKING:
    from attnlens.interventions.base import Edit
    from attnlens.vlm.prompt import Prompt


@dataclass
class Reach:
    """Which rows and keys an edit acts on.

    Attributes
    ----------
    edit
        The edit.
    columns
        int64 [keys]: slots of the keys in reach.
    start, stop
        Rows with slots from ``start`` on, and before ``stop`` where that is not None.
    """

    edit: Edit
    columns: torch.Tensor
    start: int
    stop: int | None = None


class ScoreEditor:
    """Adds the biases of edits to attention masks; rows out of reach keep the mask they had.

    Parameters
    ----------
    implementation
        Name of the model's attention implementation, ``sdpa`` or ``eager``.
    """

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        self.reaches: list[Reach] = []
        self._past = 0

    def add(self, edit: Edit, prompt: Prompt, start: int) -> Reach:
        """Let an edit act on rows from a slot on."""
        columns = torch.tensor(list(edit.reach(prompt)), dtype=torch.int64)
        reach = Reach(edit, columns, start)
        self.reaches.append(reach)
        return reach

    def begin_pass(self, tokens: int, past: int) -> None:
        """See ``attnlens.recording.tap.Editor``."""
        self._past = past

    @torch.no_grad()
    def edit(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor | None:
        """See ``attnlens.recording.tap.Editor``."""
        slots = torch.arange(self._past, self._past + query.shape[2], device=query.device)
        for reach in self.reaches:
            rows = slots >= reach.start
            if reach.stop is not None:
                rows &= slots < reach.stop
            if not bool(rows.any()):
                continue
            columns = reach.columns.to(query.device)
            scores = _scores(query[:, :, rows], key[:, :, columns], scaling)
            bias = reach.edit.bias(layer, scores, columns)
            if bias is None:
                continue
            additive = _additive(mask, query, key).expand(-1, bias.shape[1], -1, -1).clone()
            at = rows.nonzero()[:, 0]
            additive[:, :, at[:, None], columns[None, :]] += bias.to(additive.dtype)
            mask = additive
        return mask


def _scores(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scaled scores in float32, [batch, heads, rows, keys]."""
    batch, heads, rows, dimension = query.shape
    grouped = query.float().reshape(batch, key.shape[1], -1, dimension)
    products = torch.matmul(grouped, key.float().transpose(2, 3))
    return products.reshape(batch, heads, rows, key.shape[2]) * scaling


def _additive(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Additive mask [batch, 1 or heads, rows, keys] that stands for the one given."""
    rows, length = query.shape[2], key.shape[2]
    if mask is None:
        seen = torch.ones((rows, length), dtype=torch.bool, device=query.device)
        mask = seen.tril(length - rows)[None, None]
    additive: Any = as_bias(mask).to(query.dtype)
    return additive.expand(query.shape[0], -1, rows, -1)
