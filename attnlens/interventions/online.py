"""Visual share while a response is generated, computed no further than a trigger needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attnlens.recording.layout import KeyLayout
from attnlens.recording.masks import stack_biases
from attnlens.recording.mass import attention_mass
from attnlens.recording.recorder import QueryRecorder

GROUPS = 4
"""Where the layers that were enough before are not, so many parts of all are added."""


class ShareRecorder(QueryRecorder):
    """Knows the visual share of every step for which it is asked.

    A share is a mean over layers, none of them below 0. So as soon as the layers computed so far
    reach a threshold in sum, the share does, whatever the others are: a trigger that is far from
    firing costs a part of the layers. Layers that had the largest shares at the step before come
    first.

    Parameters
    ----------
    layout
        Which key belongs to which column.
    layers
        Indices of all layers.
    """

    def __init__(self, layout: KeyLayout, layers: Sequence[int]) -> None:
        super().__init__(layout, layers, every=1)
        self._steps: list[int] = []
        self._current: int | None = None
        """The step that can still be computed: the last one, until the next pass."""
        self._known: dict[int, dict[str, float]] = {}
        self._masses: dict[int, np.ndarray] = {}
        """By layer, mass [heads, columns] of the last step, as far as it was needed."""
        self._order = list(self.layers)
        self._needed = 1
        """How many layers were enough at the step before."""
        names = self.layout.names
        self._visual = np.array([name == "visual" for name in names])
        self._before = np.array([name in ("sink", "system") for name in names])

    def begin_pass(self, tokens: int, past: int, offloaded: bool) -> None:
        """See ``Listener``; what nobody asked for of the step before is let go."""
        self._masses = {}
        for parts in self._results.values():
            parts.clear()
        super().begin_pass(tokens, past, offloaded)
        assert self._pass is not None
        first = self.layout.prompt_length - 1
        steps = [p for p in self._pass.positions if p >= first]
        self._steps += steps
        self._current = steps[-1] if steps else None

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """See ``Listener``."""
        super().step_back(start, segments)
        self._steps = [p for p in self._steps if p < start]
        self._current = None
        self._known = {p: known for p, known in self._known.items() if p < start}

    def flush(self) -> None:
        """Let the waiting queries go: they are computed when they are asked for."""
        for queue in self._queues.values():
            queue.clear()

    def shares(self, definition: str, count: int, enough: float) -> list[float]:
        """Visual share at the last steps; a fraction each, mean over layers (and heads).

        Parameters
        ----------
        definition
            ``mass`` or ``look-back``, with the formulas of ``attnlens.measures.definitions``;
            copied tokens do not count as visual.
        count
            How many steps. Fewer are returned at the beginning, and from a step on that nobody
            asked for. ``look-back`` leaves out step 0.
        enough
            A share of at least this may be given as any number from here up to it.
        """
        steps = self._steps[1:] if definition == "look-back" else self._steps
        if not steps:
            return []
        if steps[-1] == self._current:
            known = self._known.setdefault(steps[-1], {})
            share = self._share(definition, enough)
            known[definition] = max(share, known.get(definition, 0.0))
        found: list[float] = []
        for step in reversed(steps[-count:]):
            if definition not in self._known.get(step, {}):
                break
            found.insert(0, self._known[step][definition])
        return found

    def _share(self, definition: str, enough: float) -> float:
        """Share of the last step: exact where it is below ``enough``."""
        for layer, parts in self._results.items():  # of a pass that was computed at once
            if parts:
                self._masses[layer] = parts[-1][1].by_column[0, -1].numpy().astype(float)
        count = len(self.layers)
        shares: dict[int, float] = {}
        stop = min(self._needed, count)
        while True:
            group = self._order[len(shares) : stop]
            self._compute([layer for layer in group if layer not in self._masses])
            found = self._of_layers(definition, np.stack([self._masses[i] for i in group]))
            shares |= dict(zip(group, found.tolist(), strict=True))
            if len(shares) == count or sum(shares.values()) >= enough * count:
                break
            stop = min(len(shares) + max(1, count // GROUPS), count)
        self._needed = self._enough(list(shares.values()), enough * count)
        if len(shares) == count:
            self._order.sort(key=lambda layer: -shares[layer])
        return sum(shares.values()) / count

    @staticmethod
    def _enough(shares: list[float], wanted: float) -> int:
        """Return how many of the shares reach a sum, or all."""
        reached = np.flatnonzero(np.cumsum(shares) >= wanted)
        return int(reached[0]) + 1 if len(reached) else len(shares)

    def _of_layers(self, definition: str, mass: np.ndarray) -> np.ndarray:
        """Shares [layer] from masses [layer, head, column]."""
        of_column = mass.mean(1)
        visual = of_column @ self._visual
        return visual if definition == "mass" else visual / (of_column @ ~self._before)

    @torch.no_grad()
    def _compute(self, layers: list[int]) -> None:
        """Compute masses of layers whose queries wait."""
        if not layers:
            return
        for group in self._alike(layers):
            queues = [self._queues[layer] for layer in group]
            keys = [queue.key for queue in queues if queue.key is not None]
            one, device, length = queues[0], keys[0].device, keys[0].shape[2]
            columns, visual = self._columns(length, 1, device)
            with torch.autocast(device.type, enabled=False):
                masses = attention_mass(
                    [queue.queries[0] for queue in queues],
                    keys,
                    columns,
                    len(self.layout.names),
                    torch.tensor(one.positions),
                    one.scaling,
                    visual=visual,
                    bias=stack_biases(one.masks, length, device),
                )
            for layer, mass in zip(group, masses, strict=True):
                self._masses[layer] = mass.by_column[0, 0].numpy().astype(float)
