"""What the figures of results share: which result they take, and how they show its intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.statistics import LEAST_FOR_MEANS


def check_result(value: Any, kind: str, maker: str) -> None:
    """Refuse what is not the result that a plot draws.

    ``kind`` is the name of its class, so that nothing need be imported; ``maker`` is what returns
    one, for the message.

    Raises
    ------
    InputError
        If it is something else.
    """
    if all(base.__name__ != kind for base in type(value).__mro__):
        raise InputError(f"{type(value).__name__} was given: give what {maker} returns")


def interval_ends(values: Any, low: Any, high: Any) -> np.ndarray:
    """Distances from values to the ends of their intervals, [2, values], 0 without an interval."""
    return np.maximum(np.nan_to_num([np.subtract(values, low), np.subtract(high, values)]), 0)


def interval_note(marks: str, counts: Iterable[int], units: str, confidence: float = 0.95) -> str:
    """Say what the bars or bands of a figure are, as a sentence that follows another.

    ``counts`` says over how many units each of them is. Fewer than eight give no interval; where
    none has enough, the note is empty.
    """
    if all(count < LEAST_FOR_MEANS for count in counts):
        return ""
    return f" {marks}: {confidence:.0%} interval over {units}."
