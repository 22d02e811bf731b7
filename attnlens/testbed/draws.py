"""Random choices among names, which scenes, questions and batches share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of the options, all alike."""
    return options[int(rng.integers(len(options)))]


def pick_by_share(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    """Draw a key; its value says how often."""
    return str(rng.choice(list(shares), p=list(shares.values())))
