"""Intervals in figures: how they are drawn, and what a caption says of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from attnlens.measures.statistics import LEAST_FOR_MEANS


def interval_ends(values: Any, low: Any, high: Any) -> np.ndarray:
    """Distances from values to the ends of their intervals, [2, values], 0 where there is none."""
    return np.maximum(np.nan_to_num([np.subtract(values, low), np.subtract(high, values)]), 0)


def interval_note(marks: str, counts: Iterable[int], units: str, confidence: float = 0.95) -> str:
    """Say what the bars or bands of a figure are, as a sentence after a blank.

    Parameters
    ----------
    marks
        What they are: bars, bands.
    counts, units
        Over how many of what, for each that may have one: of fewer than eight there is none.
    confidence
        Their level.

    Returns
    -------
    str
        Nothing where there is no interval.
    """
    if all(count < LEAST_FOR_MEANS for count in counts):
        return ""
    return f" {marks}: {confidence:.0%} interval over {units}."
