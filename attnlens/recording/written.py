"""The keys that were written into a cache, to see whether it still holds them."""

from __future__ import annotations

import torch


class WrittenKeys:
    """One key of every step, as the step wrote it."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._joined: torch.Tensor | None = None  # of the first slots
        self._new: list[torch.Tensor] = []  # of the others

    def add(self, slot: int, keys: torch.Tensor) -> None:
        """Remember the first head's key [batch, dimension] of the slot that was just written.

        Parameters
        ----------
        slot
            The slot.
        keys
            [batch, key heads, keys, dimension] of one layer.
        """
        self._slots.append(slot)
        self._new.append(keys[:, 0, slot].clone())

    def forget(self, start: int) -> None:
        """Forget the slots from ``start`` on."""
        keys = self._join()
        kept = [i for i, slot in enumerate(self._slots) if slot < start]
        self._slots = [self._slots[i] for i in kept]
        self._joined = keys[:, kept] if keys is not None and kept else None

    def check(self, keys: torch.Tensor) -> None:
        """Compare a layer's keys with what was remembered.

        Raises
        ------
        RuntimeError
            If they differ.
        """
        then = self._join()
        if then is None:
            return
        slots = torch.tensor(self._slots, device=keys.device)
        if self._slots[-1] >= keys.shape[2] or not torch.equal(keys[:, 0, slots], then):
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
