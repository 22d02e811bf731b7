"""Keys that were inserted into the cache during a generation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class InsertedKeys:
    """Which slots of the cache hold inserted keys, and their segments.

    They belong to no response token: they are no queries of steps, and the response's tokens are
    counted without them.
    """

    def __init__(self) -> None:
        self._segments: dict[int, str] = {}

    def __bool__(self) -> bool:
        """Whether anything was inserted."""
        return bool(self._segments)

    def __contains__(self, slot: int) -> bool:
        """Whether a slot holds an inserted key."""
        return slot in self._segments

    def add(self, start: int, segments: Sequence[str | None]) -> None:
        """Note that the cache was stepped back to a slot, and what comes there now.

        None stands for a response token that is fed again.
        """
        self._segments = {s: name for s, name in self._segments.items() if s < start}
        self._segments.update(
            {start + i: name for i, name in enumerate(segments) if name is not None}
        )

    def items(self) -> list[tuple[int, str]]:
        """Slots and segments, in order."""
        return sorted(self._segments.items())

    def before(self, slots: np.ndarray, segment: str | None = None) -> np.ndarray:
        """Count the inserted keys before each slot: int64, as many as slots.

        Parameters
        ----------
        slots
            int64 [n].
        segment
            Of this segment alone; all when not given.
        """
        chosen = [s for s, name in self.items() if segment in (None, name)]
        return np.searchsorted(np.array(chosen, dtype=np.int64), slots).astype(np.int64)
