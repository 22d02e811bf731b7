"""Arrays packed for a page: in as few bits as are needed, deflated, as text."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVELS = 254
"""Levels of a value of 8 bits, from 0 to the largest value of its scale."""
WIDEST = 0.0078
"""Most between two levels, so that no value is off by 0.4 % of attention mass."""
UNKNOWN = 255
"""The value that stands for NaN."""
_TYPES = {"f4": "<f4", "i4": "<i4", "u1": "u1"}


class Packer:
    """Packs arrays under names of its own.

    Parameters
    ----------
    prefix
        What these names begin with.

    Attributes
    ----------
    blobs
        Base64 of the deflated bytes (zlib), by name.
    error
        Largest difference between a value and what comes back of it, of all quantised arrays that
        were packed so far.
    total_error
        The same of sums over the last axis. Many small values that are all rounded to 0 make it
        much larger than ``error``.
    """

    def __init__(self, prefix: str = "b") -> None:
        self._prefix = prefix
        self.blobs: dict[str, str] = {}
        self.error = 0.0
        self.total_error = 0.0

    @property
    def size(self) -> int:
        """Characters of all blobs."""
        return sum(map(len, self.blobs.values()))

    def exact(self, values: np.ndarray, kind: str = "f4") -> dict[str, Any]:
        """Pack an array as floats or whole numbers of 32 bits (``i4``), or of 8 (``u1``)."""
        content = np.ascontiguousarray(values, dtype=_TYPES[kind])
        name = f"{self._prefix}{len(self.blobs)}"
        # level 6: 9 takes four times as long for one per cent
        self.blobs[name] = base64.b64encode(zlib.compress(content.tobytes(), 6)).decode()
        return {"shape": list(content.shape), "type": kind, "blob": name}

    def quantised(
        self, values: np.ndarray, scale_axes: Sequence[int], levels: int = LEVELS
    ) -> dict[str, Any]:
        """Pack an array of values from 0 up in 8 bits.

        Parameters
        ----------
        values
            float; NaN stays NaN.
        scale_axes
            Axes along which each place has a scale of its own: its largest value.
        levels
            How many levels there are from 0 to the largest value; more where they would be wider
            apart than ``WIDEST``.

        Returns
        -------
        dict
            The entry; a value is ``code * scale / levels``. Values that are no fractions of
            attention mass (below 0, or far above 1) are kept as floats, without loss.
        """
        values = np.asarray(values, dtype=np.float32)
        others = tuple(axis for axis in range(values.ndim) if axis not in scale_axes)
        unknown = np.isnan(values)
        known = np.where(unknown, 0, values)
        if known.min(initial=0) < 0 or known.max(initial=0) > WIDEST * LEVELS:
            return self.exact(values)
        scale = np.minimum(known.max(axis=others, initial=0), WIDEST * levels)
        spread = np.expand_dims(scale, others)
        per_level = np.where(spread > 0, spread / levels, 1)
        codes = np.rint(known / per_level)
        off = codes * per_level - known
        self.error = max(self.error, float(np.abs(off).max(initial=0)))
        totals = off.sum(-1, dtype=np.float64)
        self.total_error = max(self.total_error, float(np.abs(totals).max(initial=0)))
        codes[unknown] = UNKNOWN
        entry = self.exact(codes, "u1")
        return {
            **entry,
            "levels": levels,
            "scale": self.exact(scale),
            "scale_axes": list(scale_axes),
        }
