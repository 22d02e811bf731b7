"""Decay on series whose slope and half-life are known."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from helpers_traces import FakeRegion, FakeTrace, make_dataset, planted_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.errors import InputError
from attnlens.measures import Decay, GroupDecay, decay, visual_share
from attnlens.segments import SEGMENTS


def exact_dataset(visual):
    """Build a planted dataset whose mass is not rounded to float32."""
    data = planted_dataset(visual)
    mass = data["mass"].astype("float64")
    rest = 1 - np.asarray(visual, float)
    for name, values in (("visual", visual), ("sink", rest / 2), ("query", rest / 4)):
        mass.loc[{"segment": name}] = np.asarray(values)[:, None, None]
    mass.loc[{"segment": "response"}] = (rest / 4)[:, None, None]
    return data.assign(mass=mass)


@given(st.floats(2, 200), st.integers(3, 90), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_half_life_of_an_exact_exponential(half_life, steps, start):
    series = start * 0.5 ** (np.arange(steps) / half_life)
    result = decay(exact_dataset(series))
    assert result.half_life == pytest.approx(half_life, rel=1e-6)
    if steps < 60:  # too short to tell
        assert np.isnan([result.half_life_low, result.half_life_high, result.p_value]).all()
        assert np.isnan([result.slope_low, result.slope_high]).all()
    else:
        assert result.half_life_low == pytest.approx(half_life, rel=1e-4)
        assert result.half_life_high == pytest.approx(half_life, rel=1e-4)
    assert result.slope < 0
    assert result.tau == pytest.approx(-1)
    assert result.s == -steps * (steps - 1) / 2
    assert result.log_steps == result.steps == steps


def test_slope_of_a_line_with_outliers():
    series = 0.8 - 0.004 * np.arange(80)
    series[[10, 31]] = 0.05, 0.99
    result = decay(exact_dataset(series))
    assert result.slope == pytest.approx(-0.004, rel=1e-9)
    assert result.slope_low <= result.slope <= result.slope_high < 0
    assert result.p_value < 1e-3
    assert result.as_dict()["verdict"] == "falls clearly"
    rising = decay(exact_dataset(1 - series))
    assert rising.verdict == "rises clearly"
    assert decay(exact_dataset(series[:59])).verdict == "too short to tell"
    # a slow fall, and a burst at its end: tau and the line go different ways
    burst = 0.5 - 0.0004 * np.arange(80) + 0.01 * np.random.default_rng(1).normal(size=80)
    burst[-11:] += 0.3
    torn = decay(exact_dataset(burst))
    assert torn.tau < 0 < torn.line_slope
    assert torn.verdict == "no clear trend"
    noise = 0.5 + 0.1 * np.random.default_rng(5).normal(size=80)
    assert decay(exact_dataset(noise)).verdict == "no clear trend"


def test_slope_is_the_median_over_pairs_of_the_chosen_definition():
    rng = np.random.default_rng(0)
    data = make_dataset(rng.dirichlet(np.ones(7), (15, 2, 3)))
    for name in ("mass", "look-back", "lookback-ratio", "reflection-v"):
        share = visual_share(data, name)
        share = share[np.isfinite(share.values)]
        steps, values = share["step"].values, share.values
        slopes = [
            (values[j] - values[i]) / (steps[j] - steps[i])
            for i, j in combinations(range(len(values)), 2)
        ]
        result = decay(data, name)
        assert result.slope == pytest.approx(np.median(slopes), rel=1e-9)
        assert (result.start, result.stop) == (15 - len(values), 15)
        assert result.definition == name
        assert result.step_owner == share.attrs["step_owner"]


def test_a_wider_level_gives_a_wider_interval():
    data = planted_dataset(0.5 + 0.1 * np.random.default_rng(2).normal(size=70))
    narrow, wide = decay(data, confidence=0.5), decay(data, confidence=0.99)
    assert wide.slope_low < narrow.slope_low < narrow.slope_high < wide.slope_high
    assert wide.slope == narrow.slope


@pytest.mark.parametrize("confidence", [0.05, 0.49, 1, 1.5, 0, -0.95, float("nan")])
def test_levels_that_are_none_or_that_scipy_would_turn_round(confidence):
    with pytest.raises(InputError, match=f"Confidence {confidence}"):
        decay(exact_dataset(np.linspace(0.6, 0.3, 9)), confidence=confidence)


def test_interval_of_the_half_life_follows_from_that_of_the_slope():
    noise = np.exp(0.02 * np.random.default_rng(3).normal(size=60))
    result = decay(exact_dataset(0.6 * 0.5 ** (np.arange(60) / 20) * noise))
    assert result.half_life_low < 20 < result.half_life_high
    assert result.half_life_low < result.half_life < result.half_life_high < 25


def test_a_rising_or_constant_share_has_no_half_life():
    rising = decay(exact_dataset(np.linspace(0.1, 0.5, 60)))
    assert rising.half_life == np.inf
    assert rising.half_life_low == rising.half_life_high == np.inf
    assert rising.as_dict()["half_life"] is None
    flat = decay(exact_dataset(np.full(60, 0.25)))
    assert (flat.slope, flat.slope_low, flat.slope_high) == (0, 0, 0)
    assert flat.half_life == np.inf
    assert (flat.s, flat.tau, flat.p_value) == (0, 0, 1)


def test_steps_without_any_visual_mass_have_no_logarithm():
    series = np.array([0.4, 0.0, 0.2, 0.0, 0.1, 0.0, 0.05])
    result = decay(exact_dataset(series))
    assert (result.steps, result.log_steps) == (7, 4)
    assert result.half_life == pytest.approx(2)
    assert np.isnan(decay(exact_dataset(np.zeros(5))).half_life)


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_than_three_steps_say_nothing(steps):
    result = decay(planted_dataset([0.4, 0.3][:steps]))
    assert result.steps == steps
    assert (result.start, result.stop) == (0, steps)
    assert all(np.isnan(getattr(result, name)) for name in ("slope", "half_life", "tau", "p_value"))
    empty = decay(planted_dataset([0.4]), "look-back")
    assert (empty.steps, empty.start) == (0, None)
    assert json.loads(json.dumps(empty.as_dict(), allow_nan=False))["slope"] is None


def test_window_of_steps_and_of_a_region():
    series = np.concatenate([np.linspace(0.6, 0.2, 10), np.linspace(0.3, 0.7, 10)])
    regions = [FakeRegion("think", 0, 10), FakeRegion("back", 10, 20)]
    data = planted_dataset(series, regions=regions)
    assert decay(data, steps=(0, 10)).slope == pytest.approx(-0.4 / 9, rel=1e-5)
    think, back = decay(data, region="think"), decay(data, region="back")
    assert think.slope == pytest.approx(-0.4 / 9, rel=1e-5)
    assert back.slope == pytest.approx(0.4 / 9, rel=1e-5)
    assert (back.region, back.start, back.stop) == ("back", 10, 20)
    fed = decay(data, "look-back", region="back")
    assert (fed.start, fed.stop, fed.steps) == (11, 20, 9)
    again = FakeTrace(data, [FakeRegion("back", 0, 10), FakeRegion("back", 10, 20)])
    assert decay(again, region="back", occurrence=2).slope == back.slope


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": (5, 5)}, r"\(5, 5\).*no step; steps of the run: 0 to 7"),
        ({"steps": (8, 20)}, r"\(8, 20\).*0 to 7"),
        ({"region": "reflection"}, r"'reflection'.*'think' \(1\), 'back' \(1\)"),
        ({"region": "back", "occurrence": 2}, r"'back', occurrence 2"),
        ({"region": "back", "occurrence": 0}, r"'back', occurrence 0"),
        ({"region": "back", "steps": (0, 4)}, "give one"),
        ({"confidence": 1.0}, "Confidence 1.0"),
        ({"confidence": 95}, "Confidence 95"),
        ({"definition": "speed"}, "'speed'"),
    ],
)
def test_bad_options_are_refused(options, message):
    regions = [FakeRegion("think", 0, 3), FakeRegion("back", 4, 7)]
    with pytest.raises(InputError, match=message):
        decay(planted_dataset(np.linspace(0.5, 0.1, 8), regions=regions), **options)


def test_results_become_json():
    result = decay(planted_dataset(np.linspace(0.5, 0.1, 8)))
    written = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert written["slope"] == result.slope
    assert written["region"] is None
    assert set(written) == {*Decay.__dataclass_fields__, "verdict"}


def test_several_traces():
    rates = np.array([0.002, 0.004, 0.009, 0.003, 0.005, 0.006, 0.004, 0.005])
    group = decay([exact_dataset(0.6 - rate * np.arange(40)) for rate in rates])
    assert isinstance(group, GroupDecay)
    assert [trace.slope for trace in group.traces] == pytest.approx(-rates)
    assert group.slope == pytest.approx(-rates.mean())
    assert -0.009 <= group.slope_low < group.slope < group.slope_high < -0.002
    assert group.half_life == pytest.approx(np.median([trace.half_life for trace in group.traces]))
    assert group.samples == 8
    written = json.loads(json.dumps(group.as_dict(), allow_nan=False))
    assert len(written["traces"]) == 8
    assert written["traces"][0]["slope"] == pytest.approx(-0.002)


def test_several_traces_of_which_some_are_too_short():
    group = decay([planted_dataset([0.4, 0.3]), exact_dataset(0.6 - 0.01 * np.arange(9))])
    assert group.samples == 1
    assert group.slope == pytest.approx(-0.01)
    assert np.isnan(group.slope_low)
    alone = decay([planted_dataset([0.4])])
    assert np.isnan(alone.slope)
    with pytest.raises(InputError, match="empty list"):
        decay([])


def test_planted_mass_adds_up():
    data = exact_dataset(np.linspace(0.5, 0.1, 4))
    assert tuple(data["segment"].values) == SEGMENTS
    np.testing.assert_allclose(data["mass"].sum("segment"), 1)
