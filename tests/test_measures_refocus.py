"""Refocus on planted rises."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_traces import FakeRegion, FakeTrace, make_dataset, planted_dataset

from attnlens.errors import InputError
from attnlens.measures import refocus, visual_share

BACK = FakeRegion("back", 8, 12)


def planted(rise=0.2, *, seed=0, steps=16, layers=2, heads=6, region=BACK, noise=0.01):
    """Build a trace whose visual mass rises by a known amount in the region, in every head."""
    rng = np.random.default_rng(seed)
    visual = 0.3 + noise * rng.normal(size=(steps, layers, heads))
    visual[region.start : region.stop] += rise
    return planted_dataset(visual, regions=[region])


def test_planted_rise_over_heads():
    data = planted()
    mass = data["mass"].sel(segment="visual").values.astype(float)
    result = refocus(data)
    inside, before = mass[8:12].mean(0).ravel(), mass[4:8].mean(0).ravel()
    assert result.rise == pytest.approx((inside - before).mean())
    assert result.inside == pytest.approx(inside.mean())
    assert result.before == pytest.approx(before.mean())
    assert (result.unit, result.units) == ("layer x head", 12)
    assert (result.inside_steps, result.before_steps) == ((4,), (4,))
    assert not result.shortened
    assert result.effect_size == 1


def test_heads_of_one_run_give_no_interval_and_no_p_value():
    """They share the noise of their run: it moves all of them together, and tells them nothing."""
    rng = np.random.default_rng(0)
    series = 0.3 + 0.01 * rng.normal(size=(16, 1, 1)) + 0.001 * rng.normal(size=(16, 4, 6))
    one = planted_dataset(series, regions=[BACK])
    result = refocus(one)
    assert np.isnan([result.rise_low, result.rise_high, result.p_value]).all()
    assert abs(result.effect_size) > 0.9  # what a test over heads would take for certain
    several = refocus([one] * 8)
    assert np.isfinite([several.rise_low, several.rise_high, several.p_value]).all()


def test_the_interval_is_paired():
    # Runs differ a hundred times more than the rise does; unpaired, the interval would hold zero.
    rng = np.random.default_rng(0)
    traces = []
    for offset in np.linspace(0.05, 0.75, 12):
        series = offset + 1e-4 * rng.normal(size=(16, 2, 6))
        series[8:12] += 0.005
        traces.append(planted_dataset(series, regions=[BACK]))
    result = refocus(traces)
    assert 0.004 < result.rise_low < result.rise_high < 0.006


def test_a_fall_and_no_change():
    assert refocus(planted(-0.1)).effect_size == -1
    flat = refocus([planted(0.0, noise=0.0)] * 8)
    assert (flat.rise, flat.rise_low, flat.rise_high) == (0, 0, 0)
    assert (flat.p_value, flat.effect_size) == (1, 0)


def test_steps_are_those_fed_the_region_where_the_query_owns_them():
    series = np.full(16, 0.2)
    series[9:13] = 0.6  # the steps whose query tokens are response tokens 8 to 11
    data = planted_dataset(series, regions=[BACK])
    result = refocus(data, "look-back")
    share = visual_share(data, "look-back")
    assert result.inside == pytest.approx(float(share.sel(step=slice(9, 12)).mean()))
    assert result.before == pytest.approx(float(share.sel(step=slice(5, 8)).mean()))
    assert result.rise == pytest.approx(0.6 / 0.8 - 0.2 / 0.6, rel=1e-5)
    assert (result.unit, result.units) == ("layer", 2)
    assert result.step_owner == "query"
    assert refocus(data).rise == pytest.approx(0.3, rel=1e-5)


def test_definitions_that_sum_heads_use_layers():
    assert refocus(planted(), "reflection-v").unit == "layer"
    assert refocus(planted(), "no-sink").unit == "layer x head"


def test_rise_over_heads_is_the_rise_of_the_mean_share():
    rng = np.random.default_rng(4)
    data = make_dataset(rng.dirichlet(np.ones(7), (20, 3, 4)), regions=[BACK])
    for name in ("mass", "look-back", "mean-weight", "lookback-ratio", "reflection-v", "no-sink"):
        share = visual_share(data, name)
        late = 1 if share.attrs["step_owner"] == "query" else 0
        steps = np.arange(8, 12) + late
        expected = share.sel(step=steps).mean() - share.sel(step=steps - 4).mean()
        result = refocus(data, name)
        assert result.rise == pytest.approx(float(expected), rel=1e-9), name


def test_fewer_steps_before_are_used_and_reported():
    region = FakeRegion("back", 3, 10)
    result = refocus(planted(region=region))
    assert (result.inside_steps, result.before_steps, result.shortened) == ((7,), (3,), True)
    # Look-back has no step 0: steps 4 to 10 inside, 1 to 3 before.
    fed = refocus(planted(region=region), "look-back")
    assert (fed.inside_steps, fed.before_steps) == ((7,), (3,))
    # Lookback-ratio is undefined at step 0, so one step fewer is left.
    ratio = refocus(planted(region=region), "lookback-ratio")
    assert (ratio.inside_steps, ratio.before_steps) == ((7,), (2,))


def test_undefined_units_are_left_out():
    mass = make_dataset(np.random.default_rng(5).dirichlet(np.ones(7), (16, 1, 3)))["mass"].values
    mass[4:8, 0, 1] = np.eye(7)[0]
    data = make_dataset(mass, regions=[BACK])
    result = refocus(data, "no-sink")
    assert result.units == 2
    share = visual_share(data, "no-sink", reduction="none").values[:, 0, [0, 2]]
    assert result.rise == pytest.approx(share[8:12].mean() - share[4:8].mean())


def test_a_later_occurrence():
    series = np.full(20, 0.2)
    series[4:6], series[14:16] = 0.3, 0.7
    regions = [FakeRegion("reflection", 4, 6), FakeRegion("reflection", 14, 16)]
    trace = FakeTrace(planted_dataset(series), regions)
    first = refocus(trace, region="reflection")
    second = refocus(trace, region="reflection", occurrence=2)
    assert (first.rise, second.rise) == (pytest.approx(0.1, rel=1e-5), pytest.approx(0.5, rel=1e-5))
    assert second.occurrence == 2


def test_planted_rise_over_samples():
    rises = np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.05, 0.22, 0.12])
    traces = [planted(rise, seed=i) for i, rise in enumerate(rises)]
    result = refocus(traces)
    each = [refocus(trace).rise for trace in traces]
    assert (result.unit, result.units) == ("sample", 8)
    assert result.rise == pytest.approx(np.mean(each))
    assert min(each) < result.rise_low < np.mean(rises) < result.rise_high < max(each)
    assert result.p_value == pytest.approx(2 / 2**8)
    assert result.inside_steps == (4,) * 8


def test_samples_may_differ_in_length_and_heads():
    traces = [planted(0.2), planted(0.3, steps=30, layers=1, heads=2)]
    result = refocus(traces)
    assert result.units == 2
    assert result.rise == pytest.approx(0.25, abs=0.02)


def test_one_unit_has_no_interval_and_no_test():
    result = refocus(planted(layers=1, heads=1))
    assert result.units == 1
    assert np.isnan([result.rise_low, result.rise_high, result.p_value, result.effect_size]).all()
    alone = refocus([planted()])
    assert (alone.unit, alone.units) == ("sample", 1)
    written = json.loads(json.dumps(alone.as_dict(), allow_nan=False))
    assert written["rise_low"] is None
    assert written["inside_steps"] == [4]


@pytest.mark.slow
def test_interval_over_runs_covers_the_planted_rise():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        traces = []
        for rise in rng.normal(0.1, 0.03, 20):
            series = np.full((8, 1, 1), 0.3)
            series[4:8] += rise
            traces.append(planted_dataset(series, regions=[FakeRegion("back", 4, 8)]))
        result = refocus(traces, confidence=0.9)
        hits += result.rise_low <= 0.1 <= result.rise_high
    assert 47 <= hits <= 60


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (FakeRegion("think", 2, 5), r"'back', occurrence 1, is not in the trace.*'think' \(1\)"),
        (FakeRegion("back", 0, 5), r"no measured step before it"),
    ],
)
def test_what_cannot_be_compared_is_refused(region, message):
    with pytest.raises(InputError, match=message):
        refocus(planted(region=region))


def test_more_that_cannot_be_compared():
    with pytest.raises(InputError, match="regions and how often they occur: none"):
        refocus(planted_dataset([0.1, 0.2]))
    with pytest.raises(InputError, match="Trace 1: Region 'back'"):
        refocus([planted(), planted(region=FakeRegion("think", 1, 3))])
    with pytest.raises(InputError, match=r"of trace 1 .* no measured step before"):
        refocus([planted(), planted(region=FakeRegion("back", 0, 3))])
    with pytest.raises(InputError, match="empty list"):
        refocus([])
    # The only token of the region is the last of the response, which is never fed in.
    with pytest.raises(InputError, match="no measured step inside"):
        refocus(planted(region=FakeRegion("back", 15, 16)), "look-back")
    with pytest.raises(InputError, match="known: mass"):
        refocus(planted(), "focus")
    with pytest.raises(InputError, match="Confidence"):
        refocus(planted(), confidence=0)
