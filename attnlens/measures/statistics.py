"""Statistics of one series or one set of differences: SciPy with the edge cases decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used, which takes a while

from attnlens.errors import InputError
from attnlens.measures.results import check_confidence

LEAST_FOR_PROPORTIONS = 12
"""With fewer units, the intervals of proportions miss their level for some of them."""
LEAST_FOR_MEANS = 8
"""With fewer units, the intervals of means miss their level where values are strongly skewed."""
LEAST_FOR_RATIOS = 20
"""With fewer units, the intervals of ratios miss their level where the denominator is near 0."""
LEAST_FOR_CHANGES = 60
"""With fewer pairs, the interval of a change of a proportion is far too wide for rare changes."""
LEAST_CHANGED = 5
"""With fewer pairs that differ, no test of a change of a proportion can reject at 5%."""
LEAST_FOR_TREND = 7
"""With fewer values, Mann-Kendall's test rejects in less than 2% of random orders."""
LEAST_FOR_SIGNED_RANK = 6
"""With fewer pairs, no signed-rank test can reject at 5%."""


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
        Two-sided, for independent values; NaN for fewer than ``LEAST_FOR_TREND``.
    """

    s: int
    tau: float
    p_value: float


def mann_kendall(values: np.ndarray) -> TrendTest:
    """Test independent values for a monotonic trend.

    The steps of one generation are not independent: of those, S and tau are a description, and
    ``attnlens.measures.slope.slope_test`` is the test.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        Finite values in order, at least three.

    Returns
    -------
    TrendTest
    """
    n = len(values)
    if np.ptp(values) == 0:
        return TrendTest(0, 0.0, 1.0 if n >= LEAST_FOR_TREND else float("nan"))
    s = int(sum(np.sign(values[i + 1 :] - values[i]).sum() for i in range(n - 1)))
    tau, p_value = scipy.stats.kendalltau(np.arange(n), values)
    return TrendTest(s, float(tau), float(p_value) if n >= LEAST_FOR_TREND else float("nan"))


def kendall_tau(values: np.ndarray) -> float:
    """Kendall's tau-b of finite values against their order; 0 for a constant series."""
    if np.ptp(values) == 0:
        return 0.0
    return float(scipy.stats.kendalltau(np.arange(len(values)), values).statistic)


def mean_interval(
    values: np.ndarray,
    confidence: float,
    *,
    within: tuple[float, float] = (-float("inf"), float("inf")),
) -> tuple[float, float]:
    """Return an interval of the mean, corrected for skewness.

    That of Hall (1992, Journal of the Royal Statistical Society B 54:221-228, the cubic
    transformation): with t the Student quantile of the level, s the standard deviation, and
    a = skewness / sqrt(n), the ends are ``mean - s / sqrt(n) * 3 / a * (cbrt(1 + a (u - a / 6)) -
    1)`` for u = t and u = -t. Student's own interval is that of a = 0. For few values, t is taken
    sqrt(n / (n - 2)) times as large. In simulations a 95% interval holds the mean in 92 to 98% of
    cases, up to the skewness of a lognormal (``docs/statistics.md`` has the table, and what it does
    not hold for). Of differences of pairs it is the paired interval.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        One finite value per unit.
    confidence : float
        Level of the interval.
    within : tuple of float
        Bounds of the mean, such as (0, 1) for a mass; the interval stays within them.

    Returns
    -------
    tuple of float
        Low and high end: NaN for fewer than ``LEAST_FOR_MEANS`` values, the value itself if all
        are equal.

    Raises
    ------
    InputError
        If the level is out of range.
    """
    check_confidence(confidence)
    if len(values) < LEAST_FOR_MEANS:
        return float("nan"), float("nan")
    low, high = _ends_of_mean(np.asarray(values, dtype=float), confidence)
    return max(low, within[0]), min(high, within[1])


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Return an interval of a ratio of two means of the same units.

    The ratios r around the estimate (Fieller 1954, Journal of the Royal Statistical Society B
    16:175-185) for which 0 is in the interval of the mean of ``numerator - r * denominator``, as
    ``mean_interval`` has it.

    Parameters
    ----------
    numerators, denominators : numpy.ndarray, shape (n,)
        A pair of finite values per unit.
    confidence : float
        Level of the interval.

    Returns
    -------
    tuple of float
        Low and high end: NaN for fewer than ``LEAST_FOR_RATIOS`` units, and where the interval of
        the mean denominator holds 0, so that any ratio may be.

    Raises
    ------
    InputError
        If the level is out of range.
    """
    below, above = mean_interval(denominators, confidence)
    if len(denominators) < LEAST_FOR_RATIOS or below <= 0 <= above:
        return float("nan"), float("nan")
    # scaled to a mean denominator of 1 and a largest numerator of 1, for the search below
    unit = float(np.abs(numerators).max()) or 1.0
    under = denominators / denominators.mean()
    over = numerators / unit
    ratio = float(over.mean())
    residuals = over - ratio * under

    def end(which: int, direction: int) -> float:
        def beyond(at: float) -> float:
            return _ends_of_mean(over - at * under, confidence)[which]

        step = direction * float(np.ptp(residuals))
        while beyond(ratio + step) * direction > 0:
            step *= 2
        return float(scipy.optimize.brentq(beyond, *sorted((ratio, ratio + step))))

    ends = (ratio, ratio) if np.ptp(residuals) < 1e-9 else (end(0, -1), end(1, 1))
    low, high = sorted(one * (unit / denominators.mean()) for one in ends)
    return float(low), float(high)


def _ends_of_mean(values: np.ndarray, confidence: float) -> tuple[float, float]:
    count, mean = len(values), values.mean()
    # Scaled to [0, 1], because the skewness cubes differences and tiny ones underflow.
    width = np.ptp(values)
    if width == 0:
        return float(values[0]), float(values[0])
    scaled = (values - mean) / width
    variance = (scaled**2).mean()
    error = width * np.sqrt(variance / (count - 1))
    lean = float((scaled**3).mean() / variance**1.5 / np.sqrt(count))
    # of SciPy's special functions: the same as scipy.stats.t.isf, which takes twenty times as long
    quantile = scipy.special.stdtrit(count - 1, (1 + confidence) / 2) * np.sqrt(count / (count - 2))

    def deviation(at: float) -> float:
        if abs(lean) < 1e-6:  # the limit, before rounding
            return at
        return float(3 / lean * (np.cbrt(1 + lean * (at - lean / 6)) - 1))

    return float(mean - error * deviation(quantile)), float(mean - error * deviation(-quantile))


def with_interval(values: list[float], *, proportion: bool = False) -> dict[str, float | None]:
    """Return ``mean``, ``low``, ``high`` and ``count``: a mean with its 95% interval.

    Parameters
    ----------
    values : list of float
        One finite value per unit.
    proportion : bool
        Whether these are 0 or 1, or fractions of what is due in a unit: then the interval is that
        of ``proportion_interval``, else that of ``mean_interval``. None stands for an end
        that so few values do not give.
    """
    array = np.array(values)
    ends = proportion_interval(array, 0.95) if proportion else mean_interval(array, 0.95)
    low, high = (None if np.isnan(end) else end for end in ends)
    mean = float(array.mean()) if values else None
    return {"mean": mean, "low": low, "high": high, "count": len(values)}


def proportion_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return a score interval of a proportion (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        One finite value from 0 to 1 per unit: 0 or 1 (an answer that is wrong or right), or a
        fraction of what is due in the unit (facts of an answer that are right). For fractions, the
        number of units gives way to the number of independent trials that would scatter as much,
        ``p (1 - p) n / variance``, where that is larger, with Student's t for the normal quantile.
    confidence : float
        Level of the interval.

    Returns
    -------
    tuple of float
        Low and high end, both from 0 to 1; NaN for fewer than ``LEAST_FOR_PROPORTIONS`` values.

    Raises
    ------
    InputError
        If the level, or a value, is out of range.
    """
    check_confidence(confidence)
    values = np.asarray(values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"a proportion is a mean of values from 0 to 1, not of {values.tolist()}")
    count = len(values)
    if count < LEAST_FOR_PROPORTIONS:
        return float("nan"), float("nan")
    mean, variance = values.mean(), values.var(ddof=1)
    trials, quantile = float(count), scipy.stats.norm.isf((1 - confidence) / 2)
    independent = mean * (1 - mean) * count / variance if variance else 0.0
    if independent > trials and not np.isin(values, (0, 1)).all():
        trials, quantile = independent, scipy.stats.t.isf((1 - confidence) / 2, count - 1)
    shrunk = 1 + quantile**2 / trials
    middle = (mean + quantile**2 / (2 * trials)) / shrunk
    half = quantile * np.sqrt(mean * (1 - mean) / trials + (quantile / trials) ** 2 / 4) / shrunk
    low, high = float(middle - half), float(middle + half)
    return low if mean > 0 else 0.0, high if mean < 1 else 1.0


def proportion_difference(
    first: np.ndarray, second: np.ndarray, confidence: float
) -> tuple[float, float, float]:
    """Return the difference of two proportions of the same units, with Tango's score interval.

    Tango (1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B), section 3:
    the differences that a score test of the pairs does not reject.

    Parameters
    ----------
    first, second : numpy.ndarray, shape (n,)
        0 or 1, a pair per unit.
    confidence : float
        Level of the interval.

    Returns
    -------
    tuple of float
        Mean of ``second - first``, low and high end, all from -1 to 1; the ends are NaN for fewer
        than ``LEAST_FOR_CHANGES`` pairs, and all three without one.

    Raises
    ------
    InputError
        If the level is out of range, or a value is neither 0 nor 1.
    """
    check_confidence(confidence)
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not np.isin(np.concatenate([first, second]), (0, 1)).all():
        raise InputError("the difference of two proportions is one of values that are 0 or 1")
    count = len(first)
    if not count:
        return (float("nan"),) * 3
    gained, lost = float((second > first).sum()), float((first > second).sum())
    difference = (gained - lost) / count
    if count < LEAST_FOR_CHANGES:
        return difference, float("nan"), float("nan")
    quantile = scipy.stats.norm.isf((1 - confidence) / 2)

    def distance(assumed: float) -> float:
        """Score of the pairs if the true difference were ``assumed``; falls as that rises."""
        slope = -gained - lost + (2 * count - gained + lost) * assumed
        constant = -lost * assumed * (1 - assumed)
        # the most likely probability of losing, given the difference
        losing = (np.sqrt(slope**2 - 8 * count * constant) - slope) / (4 * count)
        variance = count * (2 * losing + assumed * (1 - assumed))
        return float((gained - lost - count * assumed) / np.sqrt(max(variance, 1e-300)))

    def end(outside: float, sign: int) -> float:
        if difference == outside:
            return outside
        return scipy.optimize.brentq(
            lambda assumed: distance(assumed) - sign * quantile,
            *sorted((np.nextafter(outside, 0), difference)),
        )

    return difference, float(end(-1.0, 1)), float(end(1.0, -1))


def median_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return a distribution-free interval of the median, by order statistics.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,)
        One value per unit; infinite ones count.
    confidence : float
        Level of the interval. Order statistics have few levels; the nearest is taken.

    Returns
    -------
    tuple of float
        Low and high end; NaN for fewer than ``LEAST_FOR_MEANS`` values, and where the nearest level
        leaves out the median in less than 0.4 or more than 1.6 times as many cases as `confidence`
        says.

    Raises
    ------
    InputError
        If the level is out of range.
    """
    check_confidence(confidence)
    count = len(values)
    if count < LEAST_FOR_MEANS:
        return float("nan"), float("nan")
    # from the k-th smallest to the k-th largest value: the median is outside if fewer than k are
    # on one side of it
    outside = 2 * scipy.stats.binom.cdf(np.arange(count // 2), count, 0.5)
    k = int(np.argmin(np.abs(outside - (1 - confidence)))) + 1
    if not 0.4 <= outside[k - 1] / (1 - confidence) <= 1.6:
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
        Two-sided; 1 if every difference is zero, else NaN for fewer than
        ``LEAST_FOR_SIGNED_RANK`` pairs.
    effect_size : float
        Matched-pairs rank-biserial correlation: (sum of ranks of rises - sum of ranks of falls) /
        sum of all ranks. 1 if every pair rises, -1 if every pair falls, 0 if all are zero; NaN for
        fewer than two pairs.
    """
    moved = differences[differences != 0]
    if len(differences) < 2:
        return float("nan"), float("nan")
    if len(moved) == 0:
        return 1.0, 0.0
    ranks = scipy.stats.rankdata(np.abs(moved))
    effect = float((np.sign(moved) * ranks).sum() / ranks.sum())
    if len(differences) < LEAST_FOR_SIGNED_RANK:
        return float("nan"), effect
    return float(scipy.stats.wilcoxon(moved).pvalue), effect


def superiority(
    first: np.ndarray, second: np.ndarray, confidence: float
) -> tuple[float, float, float, float]:
    """Estimate how often a value of one group exceeds one of another, independent, group.

    This probability, with ties counted half, is U / (m n) of Mann and Whitney, the area under the
    ROC curve: 0.5 where neither group tends to be higher. Its interval is Newcombe's method 5
    (2006, doi 10.1002/sim.2324), which inverts a score with the variance of Hanley and McNeil; it
    has a width even where the groups do not overlap.

    Parameters
    ----------
    first, second : numpy.ndarray, shape (m,) and (n,)
        One finite value per unit.
    confidence : float
        Level of the interval.

    Returns
    -------
    tuple of float
        Probability that a value of `first` is the higher one, low and high end, and the two-sided p
        value of Mann-Whitney's test; all but the first are NaN with fewer than
        ``LEAST_FOR_MEANS`` values in a group, the first without a value in one.

    Raises
    ------
    InputError
        If the level is out of range.
    """
    check_confidence(confidence)
    m, n = len(first), len(second)
    if not m or not n:
        return (float("nan"),) * 4
    ranks = scipy.stats.rankdata(np.concatenate([first, second]))
    found = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    if min(m, n) < LEAST_FOR_MEANS:
        return found, float("nan"), float("nan"), float("nan")
    quantile = scipy.stats.norm.isf((1 - confidence) / 2)
    middle = (m + n) / 2 - 1

    def beyond(true: float) -> float:
        """Positive where a score test rejects this probability."""
        spread = 1 + middle * ((1 - true) / (2 - true) + true / (1 + true))
        return float((found - true) ** 2 - quantile**2 * true * (1 - true) * spread / (m * n))

    near = 1e-9  # at 0 and 1 themselves the variance is 0
    low = scipy.optimize.brentq(beyond, 0, min(found, 1 - near)) if found > near else 0.0
    high = scipy.optimize.brentq(beyond, max(found, near), 1) if found < 1 - near else 1.0
    same = np.ptp(ranks) == 0
    p_value = 1.0 if same else float(scipy.stats.mannwhitneyu(first, second).pvalue)
    return found, float(low), float(high), p_value


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
    exact = scipy.stats.binomtest(won, pairs).pvalue
    return float(exact - scipy.stats.binom.pmf(won, pairs, 0.5))
