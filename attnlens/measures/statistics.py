"""Statistics of one series or one set of differences: SciPy with the edge cases decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from attnlens.errors import InputError
from attnlens.measures.results import check_confidence

MOST_DEVIATIONS = 6.0
"""No level of an interval is expanded beyond so many standard deviations of the normal law."""
FEW = 20
"""From this many units on bootstrap intervals are taken at their word."""


@dataclass(frozen=True)
class TrendTest:
    """A Mann-Kendall test of trend.

    Parameters
    ----------
    s : int
        Number of rising pairs minus number of falling pairs.
    tau : float
        Kendall's tau-b of the values against their order; 0 for a constant series.
    p_value : float
        Two-sided, for independent values.
    p_value_autocorrelated : float
        Two-sided, with the variance correction of Hamed and Rao (1998).
    variance_factor : float
        By how much the correction multiplies the variance of S, at least 1.
    """

    s: int
    tau: float
    p_value: float
    p_value_autocorrelated: float
    variance_factor: float


def mann_kendall(values: np.ndarray) -> TrendTest:
    """Test a series for a monotonic trend.

    Neighbouring steps of a generation are alike, and `p_value` counts each as new evidence, so it
    is too small. `p_value_autocorrelated` enlarges the variance of S by the autocorrelation of
    the ranks of the detrended series, at the lags where it is significant (Hamed and Rao 1998,
    doi 10.1016/S0022-1694(97)00125-X). The factor is kept from falling below 1 and the corrected
    p from falling below `p_value`, so that the correction can only make the test more careful.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        Finite values in order, at least three.

    Returns
    -------
    TrendTest
    """
    n = len(values)
    s = int(sum(np.sign(values[i + 1 :] - values[i]).sum() for i in range(n - 1)))
    if np.ptp(values) == 0:
        return TrendTest(0, 0.0, 1.0, 1.0, 1.0)
    tau, p_value = stats.kendalltau(np.arange(n), values)
    factor = max(1.0, _variance_factor(values))
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    z = (s - np.sign(s)) / np.sqrt(variance * factor)
    corrected = max(float(p_value), float(2 * stats.norm.sf(abs(z))))
    return TrendTest(s, float(tau), float(p_value), corrected, factor)


def _variance_factor(values: np.ndarray) -> float:
    """Return n / n* of Hamed and Rao (1998), from the ranks of the detrended series."""
    n = len(values)
    steps = np.arange(n)
    residual = values - stats.theilslopes(values, steps).slope * steps
    # On an exact line the residual is rounding alone, whose autocorrelation means nothing.
    if np.ptp(residual) <= 1e-12 * np.abs(values).max():
        return 1.0
    ranks = stats.rankdata(residual)
    ranks -= ranks.mean()
    correlation = np.correlate(ranks, ranks, "full")[n:] / (ranks**2).sum()
    significant = np.abs(correlation) > stats.norm.ppf(0.975) / np.sqrt(n)
    lag = np.arange(1, n)
    weight = (n - lag) * (n - lag - 1) * (n - lag - 2)
    total = (weight * correlation)[significant].sum()
    return float(1 + 2 * total / (n * (n - 1) * (n - 2)))


def bootstrap_mean(
    values: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return a bias-corrected and accelerated bootstrap interval of the mean.

    It is expanded for few units as in Hesterberg (2015, doi 10.1080/00031305.2015.1089789): the
    normal quantile of its level gives way to that of Student's t times the square root of
    n / (n - 1). Without this, 95% intervals of 10 and 20 units hold the mean in about 89% and 92%
    of cases; with it, in 93% and 94%. On differences of pairs this is the paired bootstrap: drawing
    a pair is drawing its difference.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        One finite value per unit.
    confidence : float
        Level of the interval.
    resamples : int
        Number of bootstrap samples, at least 100.
    seed : int
        Seed of the resampling.

    Returns
    -------
    tuple of float
        Low and high end: NaN for fewer than two values, the value itself if all are equal.

    Raises
    ------
    InputError
        As in :func:`check_bootstrap`.
    """
    check_bootstrap(confidence, resamples, seed)
    if len(values) < 2:
        return float("nan"), float("nan")
    width = np.ptp(values)
    if width == 0:
        return float(values[0]), float(values[0])
    # Scaled to [0, 1], because the acceleration term cubes differences and tiny ones underflow.
    interval = _bca(((values - values.min()) / width,), np.mean, confidence, resamples, seed)
    low, high = values.min() + width * np.array(interval)
    return float(low), float(high)


def bootstrap_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return a bias-corrected and accelerated bootstrap interval of a ratio of two means.

    Expanded for few units, as :func:`bootstrap_mean`.

    Parameters
    ----------
    numerators, denominators : numpy.ndarray, shape (n,)
        A pair of finite values per unit; units are drawn with both.
    confidence, resamples, seed
        As in :func:`bootstrap_mean`.

    Returns
    -------
    tuple of float
        Low and high end: NaN for fewer than two units.

    Raises
    ------
    InputError
        As in :func:`check_bootstrap`.
    """
    check_bootstrap(confidence, resamples, seed)
    if len(numerators) < 2:
        return float("nan"), float("nan")
    ratio = numerators.mean() / denominators.mean()
    if np.ptp(numerators) == np.ptp(denominators) == 0 or np.allclose(
        numerators, ratio * denominators, rtol=1e-9, atol=0.0
    ):  # every draw gives the same
        return float(ratio), float(ratio)
    low, high = _bca((numerators, denominators), _ratio_of_means, confidence, resamples, seed)
    return float(low), float(high)


def check_bootstrap(confidence: float, resamples: int, seed: int) -> None:
    """Refuse numbers that give no bootstrap interval.

    Parameters
    ----------
    confidence, resamples, seed
        As in :func:`bootstrap_mean`.

    Raises
    ------
    InputError
        If the level or the number of bootstrap samples is out of range, or the seed is no whole
        number from 0 on.
    """
    check_confidence(confidence)
    whole = isinstance(resamples, (int, np.integer)) and not isinstance(resamples, bool)
    if not whole or resamples < 100:
        raise InputError(
            f"{resamples!r} resamples give no interval; give a number of at least 100."
        )
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed={seed!r}: give a whole number from 0 on")


def _bca(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval; units are drawn with all of their values."""
    count = len(samples[0])
    # A bootstrap of few units is too narrow, as its spread divides by n and its quantiles are
    # those of many. Hesterberg (2015) widens the level as Student's t and n - 1 would.
    quantile = stats.t.isf((1 - confidence) / 2, count - 1) * np.sqrt(count / (count - 1))
    level = 1 - 2 * stats.norm.sf(min(quantile, MOST_DEVIATIONS))
    return stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        n_resamples=resamples,
        batch=max(1, 2**20 // count),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval


def _ratio_of_means(over: np.ndarray, under: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(over.mean(axis) / under.mean(axis))


def with_interval(values: list[float]) -> dict[str, float | None]:
    """Return ``mean``, ``low``, ``high`` and ``count``: a mean with its 95% bootstrap interval.

    Parameters
    ----------
    values : list of float
        One finite value per unit; without two of them there is no interval (None).
    """
    if len(values) < 2:
        mean = float(np.mean(values)) if values else None
        return {"mean": mean, "low": None, "high": None, "count": len(values)}
    low, high = bootstrap_mean(np.array(values), confidence=0.95, resamples=9999, seed=0)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "count": len(values)}


def median_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return a distribution-free interval of the median, by order statistics.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        One value per unit; infinite ones count.
    confidence : float
        Level of the interval; that of order statistics is at least so high.

    Returns
    -------
    tuple of float
        The largest and the smallest value that the median is not beyond; NaN where there are too
        few values for the level.

    Raises
    ------
    InputError
        If the level is out of range.
    """
    check_confidence(confidence)
    count = len(values)
    # fewer than k values lie under the median with probability (1 - confidence) / 2 at most
    k = int(stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    if k < 1:
        return float("nan"), float("nan")
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[count - k])


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Run the Wilcoxon signed-rank test and give the effect size that belongs to it.

    Parameters
    ----------
    differences : numpy.ndarray, shape (n,)
        One finite difference per pair; zeros are dropped.

    Returns
    -------
    p_value : float
        Two-sided; NaN for fewer than two pairs, 1 if every difference is zero.
    effect_size : float
        Matched-pairs rank-biserial correlation: (sum of ranks of rises - sum of ranks of falls) /
        sum of all ranks. 1 if every pair rises, -1 if every pair falls, 0 if all are zero.
    """
    moved = differences[differences != 0]
    if len(differences) < 2:
        return float("nan"), float("nan")
    if len(moved) == 0:
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(moved))
    effect = float((np.sign(moved) * ranks).sum() / ranks.sum())
    return float(stats.wilcoxon(moved).pvalue), effect
