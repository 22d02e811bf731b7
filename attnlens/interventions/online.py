"""Visual share while a response is generated, computed no further than a trigger needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from attnlens.recording.layout import KeyLayout
from attnlens.recording.recorder import QueryRecorder

GROUPS = 4
"""Where the layers that were enough before are not, so many parts of all are added."""


class ShareRecorder(QueryRecorder):
    """Knows the visual share of every step, as far as triggers need it.

    A share is a mean over layers, none of them below 0. So as soon as the layers computed so far
    reach the highest threshold in sum, the share does, whatever the others are, and no trigger can
    tell the difference: one that is far from firing costs a part of the layers. Layers that had the
    largest shares when all were computed come first.

    Parameters
    ----------
    layout
        Which key belongs to which column.
    layers
        Indices of all layers.
    watched
        The highest threshold of any trigger, by definition: ``mass`` or ``look-back``, with the
        formulas of ``attnlens.measures.definitions``; copied tokens do not count as visual.
    """

    checks_cache = False  # one sequence, which the session itself steps back

    def __init__(
        self, layout: KeyLayout, layers: Sequence[int], watched: Mapping[str, float]
    ) -> None:
        super().__init__(layout, layers, every=1)
        self._watched = dict(watched)
        self._known: dict[int, dict[str, float]] = {}
        """Shares by definition, by the key slot of a step's query, in order."""
        self._masses: dict[int, np.ndarray] = {}
        """By layer, mass [heads, columns] of the waiting step, as far as it was needed."""
        self._order = list(self.layers)
        self._needed = 1
        """How many layers were enough at the step before."""
        names = self.layout.names
        self._visual = np.array([name == "visual" for name in names])
        self._before = np.array([name in ("sink", "system") for name in names])

    def shares(self, definition: str, count: int) -> list[float]:
        """Visual share at the last steps; a fraction each, mean over layers (and heads).

        One that reaches the highest threshold may be given as any number from there up to it.

        Parameters
        ----------
        definition
            One of those watched.
        count
            How many steps; fewer are returned at the beginning. ``look-back`` leaves out step 0.
        """
        self.flush()
        known = list(self._known.values())[definition == "look-back" :]
        return [one[definition] for one in known[-count:]]

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """See ``Listener``."""
        super().step_back(start, segments)
        self._known = {p: known for p, known in self._known.items() if p < start}

    @torch.no_grad()
    def flush(self) -> None:
        """Compute the shares of the last pass, and let its queries and masses go."""
        self._take_results()
        first = self._queues.get(self.layers[0])
        if first is not None and first.key is not None:
            (slot,) = first.positions
            self._masses = {}
            self._known[slot] = {
                definition: self._share(definition, enough)
                for definition, enough in self._watched.items()
            }
        for queue in self._queues.values():
            queue.clear()

    def _take_results(self) -> None:
        """Take the rows of a pass that was computed at once."""
        if not all(self._results.values()):
            return
        first_step = self.layout.prompt_length - 1
        for place in range(len(self._results[self.layers[0]])):
            positions = self._results[self.layers[0]][place][0]
            masses = [parts[place][1].by_column[0].numpy() for parts in self._results.values()]
            for row, slot in enumerate(positions):
                if slot >= first_step:
                    mass = np.stack([one[row] for one in masses]).astype(float)
                    self._known[slot] = {
                        name: float(self._of_layers(name, mass).mean()) for name in self._watched
                    }
        for parts in self._results.values():
            parts.clear()

    def _share(self, definition: str, enough: float) -> float:
        """Share of the waiting step: exact where it is below ``enough``."""
        count = len(self.layers)
        shares: dict[int, float] = {}
        stop = min(self._needed, count)
        while True:
            group = self._order[len(shares) : stop]
            missing = [layer for layer in group if layer not in self._masses]
            for layer, mass in self._waiting_masses(missing).items():
                self._masses[layer] = mass.by_column[0, 0].numpy().astype(float)
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
