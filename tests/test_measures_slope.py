"""The slope of one series: against dense matrices, closed forms and simulated noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attnlens.measures import slope as module
from attnlens.measures.slope import LEAST_STEPS, slope_test


def noise(rng, count, phi):
    values = rng.normal(size=count + 200)
    for i in range(1, len(values)):
        values[i] += phi * values[i - 1]
    return values[200:]


@pytest.mark.parametrize("left_out", [(), (3, 4, 40)])
def test_each_kind_of_noise_is_generalised_least_squares(left_out):
    """Restricted likelihood, slope and error from the whole covariance matrix."""
    steps = np.delete(np.arange(70), left_out)
    values = noise(np.random.default_rng(0), 70, 0.9)[steps]
    likelihood, slopes, errors = module._fits(values, steps)
    phi, part, prior = module._kinds(len(steps))
    freedom = len(steps) - 2
    for kind in (0, 1, 9, 15, 25, 44, 60):
        covariance = part[kind] * phi[kind] ** np.abs(steps[:, None] - steps)
        np.fill_diagonal(covariance, 1.0)
        lines = np.stack([np.ones(len(steps)), steps - steps.mean()], axis=1)
        inverse = np.linalg.inv(covariance)
        products = lines.T @ inverse @ lines
        fitted = np.linalg.solve(products, lines.T @ inverse @ values)
        rest = values - lines @ fitted
        left = rest @ inverse @ rest
        terms = (np.linalg.slogdet(covariance)[1], np.linalg.slogdet(products)[1])
        want = -0.5 * (sum(terms) + freedom * np.log(left))
        assert slopes[kind] == pytest.approx(fitted[1], rel=1e-8)
        error = np.sqrt(left / freedom * np.linalg.inv(products)[1, 1])
        assert errors[kind] == pytest.approx(error, rel=1e-8)
        assert likelihood[kind] - prior[kind] == pytest.approx(want, rel=1e-8)


def test_of_white_noise_alone_it_is_the_t_test_of_a_line(monkeypatch):
    monkeypatch.setattr(module, "WHITE", 1e12)
    values = np.random.default_rng(1).normal(size=80) - 0.01 * np.arange(80)
    found = slope_test(values, np.arange(80), 0.9)
    known = stats.linregress(np.arange(80), values)
    half = stats.t.isf(0.05, 78) * known.stderr
    assert found.p_value == pytest.approx(known.pvalue, rel=1e-6)
    ends = (known.slope - half, known.slope + half)
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-6)


def test_units_and_direction():
    values = noise(np.random.default_rng(2), 90, 0.5)
    found = slope_test(values, np.arange(90), 0.95)
    scaled = slope_test(5 - 1e-6 * values, np.arange(90), 0.95)
    ends = (-1e-6 * found.high, -1e-6 * found.low)
    assert (scaled.low, scaled.high) == pytest.approx(ends)
    assert scaled.p_value == pytest.approx(found.p_value)
    steeper = slope_test(values + 0.3 * np.arange(90), np.arange(90), 0.95)
    assert (steeper.low, steeper.high) == pytest.approx((found.low + 0.3, found.high + 0.3))


def test_edges():
    short = slope_test(np.arange(LEAST_STEPS - 1.0), np.arange(LEAST_STEPS - 1), 0.95)
    assert np.isnan([short.low, short.high, short.p_value]).all()
    flat = slope_test(np.full(60, 0.3), np.arange(60), 0.95)
    assert (flat.low, flat.high, flat.p_value) == (0, 0, 1)
    line = slope_test(0.7 - 0.003 * np.arange(60), np.arange(60), 0.95)
    assert (line.low, line.high) == pytest.approx((-0.003, -0.003), rel=1e-6)
    assert line.p_value < 1e-9


@pytest.mark.slow
def test_noise_is_no_trend_and_a_trend_is_found():
    rng = np.random.default_rng(3)
    for phi in (0.0, 0.8, 0.95):
        series = [noise(rng, 60, phi) for _ in range(200)]
        found = [slope_test(values, np.arange(60), 0.95) for values in series]
        assert sum(one.p_value < 0.05 for one in found) <= 22  # 99.9% of draws at 5%
        for one in found:
            assert (one.low <= 0 <= one.high) == (one.p_value >= 0.05)
    falls = [slope_test(v - 0.1 * np.arange(60), np.arange(60), 0.95) for v in series[:20]]
    assert sum(one.p_value < 0.05 for one in falls) < 20  # under long memory a slope is hard to see
    steep = [
        slope_test(v - 0.1 * np.arange(200), np.arange(200), 0.95)
        for v in (noise(rng, 200, 0.5) for _ in range(20))
    ]
    assert all(one.high < 0 for one in steep)
