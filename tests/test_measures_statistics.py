"""Trend test, intervals and signed ranks against brute force and closed forms."""

from __future__ import annotations

import importlib.util
import math
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from attnlens.errors import InputError
from attnlens.measures import mann_kendall
from attnlens.measures.statistics import (
    mean_interval,
    median_interval,
    proportion_difference,
    proportion_interval,
    ratio_interval,
    signed_rank,
)

ROOT = Path(__file__).parents[1]
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
    assert np.isnan(result.p_value) if n < 7 else 0 <= result.p_value <= 1


def test_p_value_of_a_short_series_by_enumeration():
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.7, 0.6])
    s = abs(brute_s(values))
    extreme = [abs(brute_s(np.array(order))) >= s for order in permutations(range(7))]
    assert mann_kendall(values).p_value == pytest.approx(np.mean(extreme))


def test_constant_series_has_no_trend():
    result = mann_kendall(np.full(9, 0.3))
    assert (result.s, result.tau, result.p_value) == (0, 0, 1)


def test_exact_line():
    assert mann_kendall(0.7 - 0.003 * np.arange(60)).tau == pytest.approx(-1)


def hall(values, at):
    """Hall's (1992) cubic transformation of the studentised mean, were the true one ``at``."""
    n, error = len(values), values.std(ddof=1) / np.sqrt(len(values))
    skewness = (((values - values.mean()) / values.std()) ** 3).mean()
    lean, studentised = skewness / np.sqrt(n), (values.mean() - at) / error
    cubic = studentised + lean * studentised**2 / 3 + lean**2 * studentised**3 / 27
    return cubic + lean / 6


def few(confidence, count):
    return stats.t.isf((1 - confidence) / 2, count - 1) * np.sqrt(count / (count - 2))


@given(
    st.lists(st.integers(-50, 50), min_size=8, max_size=40).filter(lambda v: len(set(v)) > 1),
    st.sampled_from([0.8, 0.95]),
    st.sampled_from([1e-9, 1.0]),
)
@LIGHT
def test_the_interval_of_a_mean_holds_what_halls_transformation_does_not_reject(
    values, confidence, scale
):
    values = np.array(values) * scale
    low, high = mean_interval(values, confidence)
    quantile = few(confidence, len(values))
    assert low < values.mean() < high
    assert hall(values, low) == pytest.approx(quantile, rel=1e-4, abs=1e-4)
    assert hall(values, high) == pytest.approx(-quantile, rel=1e-4, abs=1e-4)


def test_the_interval_of_a_symmetric_sample_is_students():
    values = np.random.default_rng(1).normal(size=400)
    values = np.concatenate([values, -values])
    error = values.std(ddof=1) / np.sqrt(800)
    expected = stats.t.interval(0.9, 799, scale=error)
    assert mean_interval(values, 0.9) == pytest.approx(expected, rel=2e-3)


def test_skewness_moves_the_interval_towards_the_long_tail():
    values = np.random.default_rng(2).lognormal(size=40)
    low, high = mean_interval(values, 0.95)
    assert high - values.mean() > 1.3 * (values.mean() - low)
    mirrored = mean_interval(-values, 0.95)
    assert mirrored == pytest.approx((-high, -low))


@pytest.mark.parametrize("count", [8, 12, 20, 60])
@pytest.mark.parametrize("law", ["normal", "exponential", "lognormal"])
def test_intervals_of_means_hold_their_level(law, count):
    rng = np.random.default_rng(5)
    truth = {"normal": 0.0, "exponential": 1.0, "lognormal": np.exp(0.5)}[law]
    hits = 0
    for _ in range(2000):
        low, high = mean_interval(getattr(rng, law)(size=count), 0.95)
        hits += low <= truth <= high
    assert 1840 <= hits <= 1960


def test_edges_of_intervals_of_means():
    assert mean_interval(np.full(8, 0.2), 0.95) == (0.2, 0.2)
    assert np.isnan(mean_interval(np.arange(7.0), 0.95)).all()
    assert np.isfinite(mean_interval(np.arange(8.0), 0.95)).all()
    assert np.isnan(mean_interval(np.array([]), 0.95)).all()
    lone = np.repeat([0.0, 1.0], [7, 1])
    assert mean_interval(lone, 0.95)[0] < 0
    assert mean_interval(lone, 0.95, within=(0, 0.5)) == (0, 0.5)
    with pytest.raises(InputError, match="Confidence 95 "):
        mean_interval(np.arange(3.0), 95)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_of_a_ratio_holds_the_ratios_that_are_not_rejected(sign):
    """By trying ratios: of those within, the mean difference may be 0; of those beyond, not."""
    rng = np.random.default_rng(6)
    under = sign * rng.gamma(4.0, size=30)
    over = 0.4 * under + rng.normal(size=30)
    low, high = ratio_interval(over, under, 0.95)
    tried = np.linspace(-0.5, 1.5, 4001)
    held = [abs(hall(over - r * under, 0.0)) <= few(0.95, 30) for r in tried]
    assert (low, high) == pytest.approx((tried[held].min(), tried[held].max()), abs=5e-4)
    assert low < over.mean() / under.mean() < high
    for scale in (1e-200, 1e-12, 1e150):
        scaled = np.array(ratio_interval(scale * over, under, 0.95)) / scale
        assert scaled == pytest.approx((low, high))
        scaled = np.array(ratio_interval(over, scale * under, 0.95)) * scale
        assert scaled == pytest.approx((low, high))


def test_edges_of_intervals_of_ratios():
    under = np.arange(1.0, 21)
    assert ratio_interval(3 * under, under, 0.95) == pytest.approx((3, 3))
    assert ratio_interval(0 * under, under, 0.95) == (0, 0)
    assert np.isnan(ratio_interval(under[:19], under[:19], 0.95)).all()
    # the denominators may be 0 in the mean: any ratio may be
    assert np.isnan(ratio_interval(under, under - 10.5, 0.95)).all()


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
    levels = {k: sum(weights[k : count + 1 - k]) for k in range(1, count // 2 + 1)}
    apart = {k: abs(level - confidence) for k, level in levels.items()}
    if np.isnan(low):
        assert count < 8 or all(off > 0.6 * (1 - confidence) for off in apart.values())
        return
    assert low + high == count + 1
    assert apart[int(low)] == pytest.approx(min(apart.values()))
    assert apart[int(low)] <= 0.6 * (1 - confidence) + 1e-12


def test_an_interval_of_medians_may_be_without_end():
    assert median_interval(np.array([1.0] * 5 + [np.inf] * 5), 0.95) == (1.0, np.inf)


def test_intervals_of_medians_hold_their_level():
    """Exactly, from eight values on: fewer than k of n fall on one side of the median."""
    for count in range(1, 201):
        ends = median_interval(np.arange(1.0, count + 1), 0.95)
        assert np.isnan(ends[0]) == (count < 8)
        if count >= 8:
            k = int(ends[0])
            assert 0.92 <= 1 - 2 * stats.binom.cdf(k - 1, count, 0.5) <= 0.98


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


@pytest.mark.parametrize(("gained", "lost", "count"), [(3, 0, 60), (2, 7, 64), (30, 1, 80)])
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
    same = np.ones(60)
    difference, low, high = proportion_difference(same, same, 0.95)
    z = stats.norm.isf(0.025) ** 2
    assert (difference, low, high) == pytest.approx((0, -z / (60 + z), z / (60 + z)))
    assert proportion_difference(0 * same, same, 0.95)[2] == 1.0
    assert np.isnan(proportion_difference(same[:59], same[:59], 0.95)[1:]).all()
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


@pytest.fixture(scope="module")
def simulation():
    """``tools/simulate_statistics.py``, which prints the table of the documentation."""
    spec = importlib.util.spec_from_file_location(
        "simulate_statistics", ROOT / "tools" / "simulate_statistics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_what_the_simulation_prints(simulation):
    """The exact rows are the same numbers; a part of the others is drawn again."""
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = {
        cells[0]: dict(zip(simulation.COUNTS, cells[1:], strict=True))
        for line in page.splitlines()
        if len(cells := [cell.strip(" *") for cell in line.strip("|").split("|")])
        == 1 + len(simulation.COUNTS)
    }

    def shown(value):
        return simulation.cell(value, 0, 1)

    for count in simulation.COUNTS[:-1]:
        for p in simulation.PROPORTIONS:
            wilson = simulation.proportion(p, count)
            assert rows[f"proportion {p} (Wilson, exact)"][count] == shown(wilson)
            mcnemar = simulation.paired_test(p, count)
            assert rows[f"no change at {p}, paired (McNemar, exact)"][count] == shown(mcnemar)
        tango = simulation.difference(0.9, 0.0, count)
        assert rows["change from 0.9 to 0.9, paired (Tango, exact)"][count] == shown(tango)
    rng = np.random.default_rng(0)
    for kind in simulation.MEANS:
        drawn = simulation.mean(kind, 20, rng, 1000)
        assert drawn == pytest.approx(float(rows[f"mean, {kind} (Hall)"][20]), abs=0.03)
        assert simulation.mean(kind, 5, rng, 10) is None
