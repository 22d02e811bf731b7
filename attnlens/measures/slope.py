"""The slope of one series, with an interval and a p value that hold where steps are alike.

The series is a straight line plus noise: an autoregressive part of first order, and a white one.
One series says little about their parameters (the correlation of neighbours, and the autoregressive
part of the variance); with estimates in their place, a trend is found in noise far too
often. So all of them are weighed: each pair has a generalised least-squares slope with Student's t
around it, and counts by its restricted likelihood (Harville 1974, doi 10.1093/biomet/61.2.383)
times a prior. The prior was chosen by simulation, so that test and interval hold their levels for
autoregressive noise from white to a correlation of 0.95 between neighbours
(``docs/statistics.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

LEAST_STEPS = 60
"""In shorter series no method that was tried holds its level: they are too short to tell."""
RATES, SLOWEST = 15, 0.25
"""Number of forgetting rates, 1 - phi; the slowest is this over the number of steps."""
PARTS = np.array([1.0, 0.7, 0.4, 0.15])
"""Part of the noise's variance that has a memory."""
WHITE, MEMORY_ALONE, SLOW = 4 / 18, 0.97, 0.5
"""Prior: weight of white noise against all the rest; of noise without a white part within the rest;
exponent of the weight of a forgetting rate."""


@dataclass(frozen=True)
class SlopeTest:
    """What one series tells of its slope.

    Parameters
    ----------
    slope, low, high : float
        Slope of the line, the median over the kinds of noise, and its interval, in units of the
        values per step; NaN where the series is too short.
    p_value : float
        Two-sided, of no slope; NaN where the series is too short.
    """

    slope: float
    low: float
    high: float
    p_value: float


def slope_test(values: np.ndarray, steps: np.ndarray, confidence: float) -> SlopeTest:
    """Give the interval of a slope and test for none; see the module.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        Finite values.
    steps : numpy.ndarray, shape (n,)
        Their steps, whole numbers that rise; some may be left out.
    confidence : float
        Level of the interval.

    Returns
    -------
    SlopeTest
        NaN for fewer than ``LEAST_STEPS`` values.
    """
    if len(values) < LEAST_STEPS:
        return SlopeTest(*[float("nan")] * 4)
    width = float(np.ptp(values))
    if width == 0:
        return SlopeTest(0.0, 0.0, 0.0, 1.0)
    likelihood, slopes, errors = _fits((values - values.mean()) / width, np.asarray(steps))
    weights = np.exp(likelihood - likelihood.max())
    weights /= weights.sum()
    freedom = len(values) - 2

    def below(slope: float) -> float:
        """Probability that the slope is below a number."""
        return float((weights * scipy.stats.t.cdf((slope - slopes) / errors, freedom)).sum())

    def quantile(level: float) -> float:
        reach = scipy.stats.t.isf(min(level, 1 - level) / len(slopes), freedom) * errors
        return scipy.optimize.brentq(
            lambda slope: below(slope) - level, (slopes - reach).min(), (slopes + reach).max()
        )

    levels = (0.5, (1 - confidence) / 2, (1 + confidence) / 2)
    slope, low, high = (width * quantile(level) for level in levels)
    under = below(0.0)
    return SlopeTest(slope, low, high, min(1.0, 2 * min(under, 1 - under)))


def _kinds(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory (phi), part with a memory and logarithm of the prior of each kind of noise."""
    rates = np.geomspace(1, SLOWEST / count, RATES + 1)[1:]
    phi = np.concatenate([[0.0], np.tile(1 - rates, len(PARTS))])
    part = np.concatenate([[1.0], np.repeat(PARTS, RATES)])
    of_rates = rates**SLOW / (rates**SLOW).sum()
    of_parts = np.full(len(PARTS), (1 - MEMORY_ALONE) / (len(PARTS) - 1))
    of_parts[0] = MEMORY_ALONE
    return phi, part, np.log(np.concatenate([[WHITE], np.outer(of_parts, of_rates).ravel()]))


def _fits(values: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a line under each kind of noise.

    A Kalman filter over the steps makes values, constant and steps white, each kind differently;
    least squares on these is generalised least squares on the series.

    Returns
    -------
    numpy.ndarray, three of shape (kinds,)
        Logarithm of restricted likelihood times prior; slope; its standard error.
    """
    count = len(values)
    phi, part, prior = _kinds(count)
    columns = np.stack([np.ones(count), steps - np.mean(steps), values], axis=1)
    expected = np.zeros((len(phi), 3))
    variance = part.copy()
    products = np.zeros((len(phi), 3, 3))
    log_variances = np.zeros(len(phi))
    for row, gap in zip(columns, np.diff(steps, append=steps[-1] + 1), strict=True):
        total = np.maximum(variance + 1 - part, 1e-12)
        surprise = row - expected
        products += surprise[:, :, None] * surprise[:, None, :] / total[:, None, None]
        log_variances += np.log(total)
        gain = variance / total
        kept = phi**gap
        expected = kept[:, None] * (expected + gain[:, None] * surprise)
        variance = kept**2 * variance * (1 - gain) + part * (1 - kept**2)
    lines, with_values = products[:, :2, :2], products[:, :2, 2]
    inverse = np.linalg.inv(lines)
    fitted = np.einsum("kij,kj->ki", inverse, with_values)
    left = products[:, 2, 2] - (fitted * with_values).sum(1)
    left = np.maximum(left, 1e-24 * count)  # of an exact line rounding alone is left
    likelihood = -0.5 * (log_variances + np.log(np.linalg.det(lines)) + (count - 2) * np.log(left))
    errors = np.sqrt(left / (count - 2) * inverse[:, 1, 1])
    return likelihood + prior, fitted[:, 1], errors
