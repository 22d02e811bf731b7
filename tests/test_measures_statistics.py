"""Trend test, bootstrap and signed ranks against brute force and closed forms."""

from __future__ import annotations

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from attnlens.errors import InputError
from attnlens.measures import mann_kendall
from attnlens.measures.statistics import (
    bootstrap_mean,
    median_interval,
    proportion_difference,
    proportion_interval,
    signed_rank,
)

LIGHT = settings(max_examples=80, deadline=None)
SERIES = st.lists(st.integers(-4, 4), min_size=3, max_size=25).map(lambda v: np.array(v, float))


def brute_s(values):
    return sum(int(np.sign(values[j] - values[i])) for i, j in combinations(range(len(values)), 2))


@given(SERIES)
@LIGHT
def test_s_and_tau_by_counting_pairs(values):
    result = mann_kendall(values)
    assert result.s == brute_s(values)
    n = len(values)
    pairs = n * (n - 1) / 2
    tied = sum(values[i] == values[j] for i, j in combinations(range(n), 2))
    expected = result.s / np.sqrt(pairs * (pairs - tied)) if pairs > tied else 0.0
    assert result.tau == pytest.approx(expected, abs=1e-12)
    assert 0 <= result.p_value <= 1


def test_p_value_of_a_short_series_by_enumeration():
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.6])
    s = abs(brute_s(values))
    extreme = [abs(brute_s(np.array(order))) >= s for order in permutations(range(6))]
    assert mann_kendall(values).p_value == pytest.approx(np.mean(extreme))


def test_constant_series_has_no_trend():
    result = mann_kendall(np.full(9, 0.3))
    assert (result.s, result.tau, result.p_value) == (0, 0, 1)


def test_exact_line():
    assert mann_kendall(0.7 - 0.003 * np.arange(60)).tau == pytest.approx(-1)


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=16), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_bootstrap_interval_is_finite_ordered_and_within_the_values(values, seed):
    values = np.array(values)
    low, high = bootstrap_mean(values, confidence=0.9, resamples=200, seed=seed)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_mean(
            rng.normal(0.3, 0.2, 30), confidence=0.9, resamples=400, seed=int(rng.integers(2**31))
        )
        hits += low <= 0.3 <= high
    assert 0.82 <= hits / 200 <= 0.96


def test_bootstrap_interval_is_bias_corrected_and_accelerated():
    values = np.random.default_rng(2).exponential(size=12) ** 2
    draws = np.random.default_rng(3).choice(values, (40000, 12)).mean(1)
    bias = stats.norm.ppf((draws < values.mean()).mean())
    left_out = np.array([np.delete(values, i).mean() for i in range(12)])
    spread = left_out.mean() - left_out
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    # expanded for twelve values, as in Hesterberg (2015)
    z = bias + stats.t.ppf([0.05, 0.95], 11) * np.sqrt(12 / 11)
    expected = np.quantile(draws, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    found = bootstrap_mean(values, confidence=0.9, resamples=20000, seed=0)
    np.testing.assert_allclose(found, expected, rtol=0.03)
    plain = np.quantile(draws, [0.05, 0.95])
    assert (np.abs(expected / plain - 1) > 0.06).all()


def test_bootstrap_is_repeatable_and_follows_its_seed():
    values = np.random.default_rng(1).normal(size=15)
    options = {"confidence": 0.95, "resamples": 300}
    first = bootstrap_mean(values, seed=3, **options)
    assert bootstrap_mean(values, seed=3, **options) == first
    assert bootstrap_mean(values, seed=4, **options) != first


def test_bootstrap_edges():
    options = {"confidence": 0.95, "resamples": 200, "seed": 0}
    assert bootstrap_mean(np.full(8, 0.2), **options) == (0.2, 0.2)
    assert np.isnan(bootstrap_mean(np.arange(7.0), **options)).all()
    assert np.isfinite(bootstrap_mean(np.arange(8.0), **options)).all()
    assert np.isnan(bootstrap_mean(np.array([]), **options)).all()
    with pytest.raises(InputError, match="20 resamples"):
        bootstrap_mean(np.arange(3.0), confidence=0.95, resamples=20, seed=0)
    with pytest.raises(InputError, match="Confidence 95 "):
        bootstrap_mean(np.arange(3.0), confidence=95, resamples=200, seed=0)


@given(
    st.lists(
        st.floats(-1, 1).filter(lambda x: abs(x) > 1e-6), min_size=6, max_size=9, unique_by=abs
    )
)
@LIGHT
def test_signed_ranks_by_enumeration(values):
    differences = np.array(values)
    p_value, effect = signed_rank(differences)
    ranks = stats.rankdata(np.abs(differences))
    total = ranks.sum()
    observed = (np.sign(differences) * ranks).sum()
    assert effect == pytest.approx(observed / total)
    sums = [abs(np.dot(signs, ranks)) for signs in product([-1, 1], repeat=len(ranks))]
    assert p_value == pytest.approx(np.mean(np.array(sums) >= abs(observed) - 1e-9))


def test_signed_rank_edges():
    assert signed_rank(np.zeros(4)) == (1.0, 0.0)
    p_value, effect = signed_rank(np.arange(1.0, 6))  # five pairs cannot reject at 5%
    assert np.isnan(p_value)
    assert effect == 1
    assert signed_rank(np.arange(1.0, 7))[0] == pytest.approx(2 / 2**6)
    assert np.isnan(signed_rank(np.array([0.3]))).all()
    assert signed_rank(np.array([0.0, 0.2]))[1] == 1.0


@given(st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_of_medians_cover_by_enumeration(count, confidence):
    """Order statistics a and b hold the median unless fewer than a, or more than b - 1, lie low."""
    low, high = median_interval(np.arange(1.0, count + 1), confidence)
    weights = [math.comb(count, k) / 2**count for k in range(count + 1)]
    if np.isnan(low):
        assert 2 * weights[0] > 1 - confidence  # even the extremes would not do
        return
    assert low + high == count + 1
    assert sum(weights[int(low) : int(high)]) >= confidence
    assert sum(weights[int(low) + 1 : int(high) - 1]) < confidence


def test_an_interval_of_medians_may_be_without_end():
    assert median_interval(np.array([1.0] * 5 + [np.inf] * 5), 0.95) == (1.0, np.inf)


@given(st.integers(12, 200), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
@LIGHT
def test_proportions_have_wilsons_interval(count, data, confidence):
    right = data.draw(st.integers(0, count))
    values = np.repeat([1.0, 0.0], [right, count - right])
    known = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert proportion_interval(values, confidence) == pytest.approx((known.low, known.high))


def test_proportions_hold_their_level():
    """Exactly, by summing the binomial law, wherever an interval is given."""
    for count in (12, 20, 60, 200):
        ends = np.array(
            [
                proportion_interval(np.repeat([1.0, 0.0], [k, count - k]), 0.95)
                for k in range(count + 1)
            ]
        )
        for truth in (0.5, 0.9, 0.98):
            held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
            assert 0.92 <= stats.binom.pmf(np.arange(count + 1), count, truth)[held].sum() <= 0.98
    assert np.isnan(proportion_interval(np.ones(11), 0.95)).all()


def test_fractions_within_units_hold_their_level():
    """Two to four facts of an answer, right together more often than by chance."""
    rng = np.random.default_rng(3)
    for count, truth in ((20, 0.5), (20, 0.98), (60, 0.9)):
        hits = 0
        for _ in range(1000):
            facts = rng.integers(2, 5, count)
            chance = rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, count)  # correlation 0.3
            low, high = proportion_interval(rng.binomial(facts, chance) / facts, 0.95)
            hits += low <= truth <= high
        assert 920 <= hits <= 980
    low, high = proportion_interval(np.ones(60), 0.95)
    assert (round(low, 2), high) == (0.94, 1.0)
    with pytest.raises(InputError, match="from 0 to 1"):
        proportion_interval(np.full(20, 1.5), 0.95)


@pytest.mark.parametrize(("gained", "lost", "count"), [(3, 0, 20), (2, 7, 44), (30, 1, 60)])
def test_paired_differences_have_tangos_interval(gained, lost, count):
    """At an end the score is the quantile; the nuisance is maximised by searching for it."""
    first, second = np.zeros(count), np.zeros(count)
    second[:gained], first[gained : gained + lost] = 1, 1
    difference, low, high = proportion_difference(first, second, 0.95)
    assert difference == pytest.approx((gained - lost) / count)
    assert proportion_difference(second, first, 0.95) == pytest.approx((-difference, -high, -low))

    def score(assumed):
        def unlikely(losing):
            same = 1 - 2 * losing - assumed
            terms = zip(
                (gained, lost, count - gained - lost), (losing + assumed, losing, same), strict=True
            )
            return -sum(n * np.log(p) for n, p in terms if n)

        bounds = (max(0.0, -assumed) + 1e-12, (1 - assumed) / 2 - 1e-12)
        losing = optimize.minimize_scalar(
            unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = count * (2 * losing + assumed * (1 - assumed))
        return (gained - lost - count * assumed) / np.sqrt(variance)

    assert score(low) == pytest.approx(stats.norm.isf(0.025), abs=1e-3)
    assert score(high) == pytest.approx(-stats.norm.isf(0.025), abs=1e-3)


def test_paired_differences_at_their_ends():
    same = np.ones(20)
    difference, low, high = proportion_difference(same, same, 0.95)
    z = stats.norm.isf(0.025) ** 2
    assert (difference, low, high) == pytest.approx((0, -z / (20 + z), z / (20 + z)))
    assert proportion_difference(0 * same, same, 0.95)[2] == 1.0
    assert np.isnan(proportion_difference(same[:11], same[:11], 0.95)[1:]).all()
    assert np.isnan(proportion_difference(same[:0], same[:0], 0.95)).all()
    with pytest.raises(InputError, match="0 or 1"):
        proportion_difference(same / 2, same, 0.95)


def test_paired_differences_hold_their_level():
    rng = np.random.default_rng(4)
    for both, gained, lost in ((0.3, 0.2, 0.2), (0.5, 0.375, 0.0), (0.75, 0.1, 0.1)):
        hits = 0
        for _ in range(1000):
            kind = rng.choice(4, 60, p=[both, gained, lost, 1 - (both + gained + lost)])
            first, second = np.isin(kind, (0, 2)), np.isin(kind, (0, 1))
            _, low, high = proportion_difference(first, second, 0.95)
            hits += low <= gained - lost <= high
        assert 920 <= hits <= 980
