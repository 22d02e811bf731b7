"""Bounds of mutual information, on answers whose information is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from attnlens.errors import InputError
from attnlens.measures import mutual_information


def answer(own, others, *, without=None, entropy=0.0, share=None):
    """A dataset as ``attnlens.dependence`` gives it, from log-probabilities by step."""
    own, others = np.asarray(own, float), np.asarray(others, float)
    names = [f"other {i + 1}" for i in range(len(others))]
    ratios = own - others
    if without is not None:
        names, ratios = ["removed", *names], np.vstack([own - without, ratios])
    steps = np.arange(len(own))
    shape = ratios.shape
    return xr.Dataset(
        {
            "log_probability": ("step", own),
            "entropy": ("step", np.full(len(own), entropy)),
            "log_ratio": (("reference", "step"), ratios),
            "kl": (("reference", "step"), np.abs(ratios)),
            "entropy_without": (("reference", "step"), np.full(shape, 1.0)),
            "key_share": ("step", 1 / (2 + steps) if share is None else share),
        },
        {"reference": names, "step": steps},
    )


def simulated(images, prompts, rng):
    """Answers of two tokens from a known p(y | image); images are drawn evenly."""
    tables = rng.dirichlet(np.full(3, 0.5), size=(images, 4))  # [image, context, token]
    pairs = list(itertools.product(range(3), repeat=2))

    def log_p(image, pair):
        first, second = pair
        return np.log([tables[image, 0, first], tables[image, 1 + first, second]])

    joint = np.array([[np.exp(log_p(i, pair).sum()) for pair in pairs] for i in range(images)])
    known = np.mean([stats.entropy(row, joint.mean(0)) for row in joint])
    groups = []
    for _ in range(prompts):
        image = rng.integers(images)
        pair = pairs[rng.choice(len(pairs), p=joint[image])]
        others = rng.integers(images, size=15)
        groups.append([answer(log_p(image, pair), [log_p(k, pair) for k in others])])
    return groups, known


@pytest.mark.slow
def test_bounds_hold_the_information_that_is_known():
    for seed in range(2):
        groups, known = simulated(6, 700, np.random.default_rng(seed))
        found = mutual_information(groups, bins=2)
        assert found.reference == "others"
        error = found.standard_error
        assert found.at_least - 3 * error < known < found.nats + 3 * error
        assert found.nats - found.at_least < 0.35  # fifteen images are many of six
        assert found.at_least <= np.log(16)


def test_with_every_other_image_the_bound_is_the_information():
    """Against the exact average, the mean log-ratio over all answers is the information itself."""
    rng = np.random.default_rng(1)
    tables = rng.dirichlet(np.ones(3), size=4)
    groups, weights = [], []
    for image, token in itertools.product(range(4), range(3)):
        groups.append([answer(np.log(tables[image, [token]]), np.log(tables[:, [token]]))])
        weights.append(tables[image, token] / 4)
    nats = [mutual_information([g], bins=2).nats for g in groups]
    known = np.mean([stats.entropy(row, tables.mean(0)) for row in tables])
    assert np.dot(weights, nats) == pytest.approx(known)


def test_sums_means_and_errors_over_prompts():
    rng = np.random.default_rng(0)
    own = -rng.random((9, 2, 8))
    without = own - rng.random((9, 2, 8))
    groups = [
        [answer(own[i, j], np.zeros((0, 8)), without=without[i, j], entropy=0.5) for j in range(2)]
        for i in range(9)
    ]
    found = mutual_information(groups, bins=4)
    totals = (own - without).sum(-1)
    assert found.reference == "removed"
    assert found.nats == pytest.approx(totals.mean())
    assert found.standard_error == pytest.approx(totals.mean(1).std(ddof=1) / np.sqrt(9))
    within = totals.var(axis=1, ddof=1) / 2
    assert found.sampling_error == pytest.approx(np.sqrt(within.sum()) / 9)
    assert found.by_divergence == pytest.approx(totals.mean())  # here it is the same
    assert found.entropy == pytest.approx(4.0)
    assert np.isnan(found.at_least)
    parts = (own - without).reshape(9, 2, 4, 2).mean((0, 1, 3))
    np.testing.assert_allclose(found.curve["nats_per_step"], parts)
    np.testing.assert_allclose(found.curve["start"], [0, 0.25, 0.5, 0.75])
    share = (1 / (2 + np.arange(8))).reshape(4, 2).mean(1)
    np.testing.assert_allclose(found.curve["key_share"], share)
    np.testing.assert_allclose(found.curve["key_share_times_entropy"], share)
    assert found.nats_low < found.nats < found.nats_high
    assert "removed" in found.as_dict()["reference"]
    assert "no image" in found.as_dict()["verdict"][0]


def test_information_that_falls_as_the_bound_does():
    share = np.linspace(0.8, 0.1, 10)
    rising = [answer(-share, np.zeros((0, 10)), without=-2 * share, share=share)]
    falling = [answer(-share, np.zeros((0, 10)), without=-2 * share, share=share[::-1])]
    assert mutual_information([rising]).rank_correlation == pytest.approx(1)
    assert mutual_information([falling]).rank_correlation == pytest.approx(-1)


def test_short_answers_leave_parts_empty():
    one = answer([-1.0, -2.0], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    found = mutual_information([[one]])
    assert found.nats == pytest.approx(2)
    assert len(found.curve) == 2
    assert np.isnan([found.nats_low, found.standard_error, found.sampling_error]).all()
    assert found.as_dict()["nats_low"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "a prompt without answers"),
        ({"groups": [[]]}, "a prompt without answers"),
        ({"reference": "blank"}, "'blank' was not measured for each answer: use removed"),
        ({"reference": "others"}, "'others' was not measured"),
        ({"bins": 1}, "bins=1"),
        ({"confidence": 2}, "Confidence 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    one = answer([-1.0, -2.0], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    options = {"groups": [[one]], **change}
    with pytest.raises(InputError, match=message):
        mutual_information(options.pop("groups"), **options)
