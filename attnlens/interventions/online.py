"""Visual share while a response is generated, computed no further than a trigger needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from attnlens.recording.layout import KeyLayout
from attnlens.recording.masks import stack_biases
from attnlens.recording.mass import mass_on_sets
from attnlens.recording.recorder import AttentionRecorder

GROUPS = 4
"""Where the layers that were enough before are not, so many parts of all are added."""


class ShareRecorder(AttentionRecorder):
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
        self._masses: dict[int, list[float]] = {}
        """By layer, mass on each set in the waiting step, mean over heads, as far as needed."""
        self._order = list(self.layers)
        self._needed = 1
        """How many layers were enough at the step before."""
        names = self.layout.names
        self._of_columns = np.array(
            [[name == "visual", name not in ("sink", "system")] for name in names], dtype=np.float32
        )
        """[columns, sets]: the visual keys, and all but those that look-back leaves out."""
        self._of_keys: dict[torch.device, torch.Tensor] = {}
        """[keys, sets], with room for keys to come, none of which is visual."""

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
            masses = [
                parts[place][1].by_column[0].numpy() @ self._of_columns
                for parts in self._results.values()
            ]
            for row, slot in enumerate(positions):
                if slot >= first_step:
                    mass = [one[row].astype(float).mean(0).tolist() for one in masses]
                    self._known[slot] = {
                        name: sum(self._of_layers(name, mass)) / len(mass) for name in self._watched
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
            self._compute(missing)
            found = self._of_layers(definition, [self._masses[i] for i in group])
            shares |= zip(group, found, strict=True)
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
        sums = itertools.accumulate(shares)
        return next((count for count, one in enumerate(sums, 1) if one >= wanted), len(shares))

    def _compute(self, layers: Sequence[int]) -> None:
        """Compute the masses of the waiting step in layers."""
        for group in self._alike(layers):
            queues = [self._queues[layer] for layer in group]
            keys = [queue.key for queue in queues if queue.key is not None]
            one, (device, length) = queues[0], (keys[0].device, keys[0].shape[2])
            with torch.autocast(device.type, enabled=False):  # see AttentionRecorder
                masses = mass_on_sets(
                    [queue.queries[0] for queue in queues],
                    keys,
                    self._sets(length, device),
                    one.positions[0],
                    one.scaling,
                    stack_biases(one.masks, length, device),
                )
            of_layers = masses.numpy().mean(1, dtype=float).tolist()
            self._masses |= zip(group, of_layers, strict=True)

    def _sets(self, length: int, device: torch.device) -> torch.Tensor:
        """Which key belongs to which set, [length, sets]."""
        made = self._of_keys.get(device)
        if made is None or len(made) < length:
            made = torch.tensor([[0.0, 1.0]]).repeat(2 * length, 1)
            prompt = self._of_columns[self.layout.columns[0]]
            made[: len(prompt)] = torch.from_numpy(prompt)
            made = self._of_keys[device] = made.to(device)
        return made[:length]

    @staticmethod
    def _of_layers(definition: str, masses: Sequence[list[float]]) -> list[float]:
        """Share of each layer from its mass on each set."""
        if definition == "mass":
            return [visual for visual, _ in masses]
        return [visual / counted if counted else math.nan for visual, counted in masses]
