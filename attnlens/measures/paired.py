"""Tests of paired right and wrong answers, and of many comparisons at once."""

from __future__ import annotations

import numpy as np
from scipy import stats


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p values for having asked several times (Holm 1979); NaN stays out of the count."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, float(p_values[index]) * (len(order) - place)))
        adjusted[index] = highest
    return adjusted


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided McNemar test of paired right and wrong answers; NaN where none is known."""
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return float("nan")
    lost = int(((before == 1) & (after == 0) & known).sum())
    won = int(((before == 0) & (after == 1) & known).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
