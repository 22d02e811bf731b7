"""What an intervention changes against its untouched twin: pure functions of arrays."""

from __future__ import annotations

import numpy as np

_ROWS = 32
"""Steps that are compared at a time."""


def divergences(log_p: np.ndarray, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare two next-token distributions at each step.

    Parameters
    ----------
    log_p, log_q
        [steps, vocabulary]: natural logarithms of probabilities.

    Returns
    -------
    kl, hellinger : numpy.ndarray, [steps]
        Kullback-Leibler divergence ``sum p log(p / q)`` in nats, and Hellinger distance
        ``sqrt(1 - sum sqrt(p q))``, 0 to 1.
    """
    kl, hellinger = np.zeros(len(log_p)), np.zeros(len(log_p))
    for start in range(0, len(log_p), _ROWS):  # a vocabulary of 152,000 is 1.2 MB a row
        rows = slice(start, start + _ROWS)
        a, b = log_p[rows].astype(np.float64), log_q[rows].astype(np.float64)
        p = np.exp(a)
        # where p is 0 the term is 0, whatever q is
        terms = np.where(p > 0, p * (a - np.where(p > 0, b, 0.0)), 0.0)
        overlap = np.exp((a + b) / 2).sum(-1)
        kl[rows] = np.maximum(terms.sum(-1), 0.0)
        hellinger[rows] = np.sqrt(np.clip(1.0 - overlap, 0.0, 1.0))
    return kl, hellinger


def entropy(log_p: np.ndarray) -> np.ndarray:
    """Entropy of the next token at each step, nats: [steps] from logarithms [steps, vocabulary]."""
    found = np.zeros(len(log_p))
    for start in range(0, len(log_p), _ROWS):
        rows = slice(start, start + _ROWS)
        logs = log_p[rows].astype(np.float64)
        p = np.exp(logs)
        found[rows] = -np.where(p > 0, p * np.where(p > 0, logs, 0.0), 0.0).sum(-1)
    return found


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Average over the last axis, undefined entries left out; NaN where there is no other."""
    known = np.isfinite(values)
    counts = known.sum(-1)
    return np.where(
        counts > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(counts, 1), np.nan
    )


def mean_from(values: np.ndarray, start: int) -> float:
    """Return the mean of a series from a step on, undefined steps left out; NaN without any."""
    return float(mean_of_known(values[start:]))


def area_from(values: np.ndarray, start: int) -> float:
    """Return the sum of a series from a step on (unit x steps), undefined steps left out."""
    kept = values[start:]
    kept = kept[np.isfinite(kept)]
    return float(kept.sum()) if len(kept) else float("nan")


def half_life(values: np.ndarray, start: int) -> float:
    """Count the steps from the peak of a rise until it first falls to half of it or less.

    Parameters
    ----------
    values
        [steps]: rise at each step; undefined ones are passed over.
    start
        First step that counts.

    Returns
    -------
    float
        NaN where the series has no positive value, infinity where it never comes down so far.
    """
    kept = values[start:]
    defined = np.flatnonzero(np.isfinite(kept))
    if not len(defined) or kept[defined].max() <= 0:
        return float("nan")
    peak = int(defined[np.argmax(kept[defined])])
    later = defined[defined > peak]
    low = later[kept[later] <= kept[peak] / 2]
    return float(low[0] - peak) if len(low) else float("inf")
