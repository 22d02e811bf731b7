"""Tests of paired right and wrong answers, and of many comparisons at once."""

from __future__ import annotations

import numpy as np
from scipy import stats

from attnlens.measures.statistics import LEAST_CHANGED


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
    """Test paired right and wrong answers (McNemar, two-sided, mid-p).

    NaN for fewer than ``LEAST_CHANGED`` pairs that differ. Pairs with an unknown answer are left
    out.

    The mid-p value counts half of the probability of what was seen. Fagerland, Lydersen and Laake
    (2013, doi 10.1186/1471-2288-13-91) find that it keeps its level where the exact test, which
    counts all of it, rejects too seldom.
    """
    lost = int(((before == 1) & (after == 0)).sum())
    won = int(((before == 0) & (after == 1)).sum())
    pairs = won + lost
    if pairs < LEAST_CHANGED:
        return float("nan")
    if won == lost:
        return 1.0
    exact = stats.binomtest(won, pairs).pvalue
    return float(exact - stats.binom.pmf(won, pairs, 0.5))
