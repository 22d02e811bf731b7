"""Visual share while a response is generated, computed no further than a trigger needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from attnlens.recording.layout import KeyLayout
from attnlens.recording.mass import mass_on_sets
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.tap import LayerAttention, Pass

GROUPS = 4
"""Where the layers of the step before do not suffice, 1 / GROUPS of all layers is added."""


class ShareRecorder:
    """Computes the visual share of every step, as far as triggers need it.

    A share is a mean over layers, none of them below 0. Once the sum over the layers computed so
    far reaches the highest threshold, the share does, too, whatever the other layers are. So a
    trigger far from firing costs only some of the layers. Layers that had the largest shares when
    all were computed come first.

    ``watched`` is the highest threshold of any trigger, by definition: ``mass`` or ``look-back``,
    with the formulas of ``attnlens.measures.definitions``; copied tokens do not count as visual.
    """

    def __init__(
        self, layout: KeyLayout, layers: Sequence[int], watched: Mapping[str, float]
    ) -> None:
        # the session itself steps the cache back: it needs no check
        self._recorder = AttentionRecorder(layout, layers, every=1, checks_cache=False)
        self._layout = layout
        self._watched = dict(watched)
        self._known: dict[int, dict[str, float]] = {}
        """Shares by definition, by the key slot of a step's query, in order."""
        self._masses: dict[int, list[float]] = {}
        """By layer, mass on each set in the waiting step, mean over heads, as far as needed."""
        self._order = list(layers)
        self._needed = 1
        """How many layers were enough at the step before."""
        self._of_columns = np.array(
            [[name == "visual", name not in ("sink", "system")] for name in layout.names],
            dtype=np.float32,
        )
        """[columns, sets]: the visual keys, and all except those that look-back leaves out."""
        self._of_keys: dict[torch.device, torch.Tensor] = {}
        """[keys, sets], with room for keys to come, none of which is visual."""

    def shares(self, definition: str, count: int) -> list[float]:
        """Visual share at the last ``count`` steps, or fewer at the beginning, as fractions.

        Means over layers (and heads). A share that reaches the highest threshold may be returned as
        any number from the threshold up to it. ``look-back`` leaves out step 0.
        """
        self.flush()
        known = list(self._known.values())[definition == "look-back" :]
        return [one[definition] for one in known[-count:]]

    # Listener interface

    def tokens(self, input_ids: torch.Tensor) -> None:
        """See ``Listener``."""
        self._recorder.tokens(input_ids)

    def begin_pass(self, begun: Pass) -> None:
        """See ``Listener``."""
        self.flush()
        self._recorder.begin_pass(begun)

    def end_pass(self) -> None:
        """See ``Listener``."""
        self._recorder.end_pass()

    def attention(self, seen: LayerAttention) -> None:
        """See ``Listener``."""
        self._recorder.attention(seen)

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """See ``Listener``."""
        self.flush()
        self._recorder.step_back(start, segments)
        self._known = {p: known for p, known in self._known.items() if p < start}

    # Shares

    @torch.no_grad()
    def flush(self) -> None:
        """Compute the shares of the last pass, and drop its queries and masses."""
        self._take_computed()
        for slot in self._recorder.waiting_slots:
            self._masses = {}
            self._known[slot] = {
                definition: self._share(definition, enough)
                for definition, enough in self._watched.items()
            }
        self._recorder.drop_waiting()

    def _take_computed(self) -> None:
        """Take the rows of a pass that was computed at once."""
        by_layer = list(self._recorder.take_computed().values())
        first_step = self._layout.prompt_length - 1
        # a pass that was interrupted is left out, as some layers did not see it
        for parts in zip(*by_layer, strict=False):
            positions = parts[0][0]
            masses = [mass.by_column[0].numpy() @ self._of_columns for _, mass in parts]
            for row, slot in enumerate(positions):
                if slot >= first_step:
                    of_layers = [one[row].astype(float).mean(0).tolist() for one in masses]
                    self._known[slot] = {
                        name: sum(_share_of_layers(name, of_layers)) / len(of_layers)
                        for name in self._watched
                    }

    def _share(self, definition: str, enough: float) -> float:
        """Share of the waiting step: exact where it is below ``enough``."""
        count = len(self._order)
        shares: dict[int, float] = {}
        stop = min(self._needed, count)
        while True:
            group = self._order[len(shares) : stop]
            self._compute([layer for layer in group if layer not in self._masses])
            found = _share_of_layers(definition, [self._masses[i] for i in group])
            shares |= zip(group, found, strict=True)
            if len(shares) == count or sum(shares.values()) >= enough * count:
                break
            stop = min(len(shares) + max(1, count // GROUPS), count)
        sums = itertools.accumulate(shares.values())
        needed = (n for n, one in enumerate(sums, 1) if one >= enough * count)
        self._needed = next(needed, len(shares))
        if len(shares) == count:
            self._order.sort(key=lambda layer: -shares[layer])
        return sum(shares.values()) / count

    def _compute(self, layers: Sequence[int]) -> None:
        """Compute the masses of the waiting step in layers."""
        for group, attention in self._recorder.waiting(layers):
            key = attention.keys[0]
            masses = mass_on_sets(attention, self._sets(key.shape[2], key.device))
            of_layers = masses.numpy().mean(1, dtype=float).tolist()
            self._masses |= zip(group, of_layers, strict=True)

    def _sets(self, length: int, device: torch.device) -> torch.Tensor:
        """Which key belongs to which set, [length, sets]."""
        made = self._of_keys.get(device)
        if made is None or len(made) < length:
            made = torch.tensor([[0.0, 1.0]]).repeat(2 * length, 1)
            prompt = self._of_columns[self._layout.columns[0]]
            made[: len(prompt)] = torch.from_numpy(prompt)
            made = self._of_keys[device] = made.to(device)
        return made[:length]


def _share_of_layers(definition: str, masses: Sequence[list[float]]) -> list[float]:
    """Share of each layer from its mass on each set."""
    if definition == "mass":
        return [visual for visual, _ in masses]
    return [visual / counted if counted else math.nan for visual, counted in masses]
