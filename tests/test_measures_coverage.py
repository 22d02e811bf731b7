"""Intervals of the theorems' estimators hold the known answer as often as they say."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from test_measures_information import answer

from attnlens.measures import (
    agreement,
    averages,
    dilution,
    insertion,
    mutual_information,
)
from attnlens.measures.statistics import mean_interval, ratio_interval
from attnlens.measures.theorems import dilution as dilution_module
from attnlens.measures.theorems import information
from attnlens.measures.theorems import insertion as insertion_module
from attnlens.measures.theorems.synthetic import synthetic_attention

pytestmark = pytest.mark.slow

SETS, RUNS, POOL = 1000, 40, 200
STEPS = np.arange(8)
LOOKED = ["visual", "copied"]
# in the package these names are those of the functions
AVERAGES, AGREEMENT = (
    sys.modules[f"attnlens.measures.{name}"] for name in ("averages", "agreement")
)


def drawn(seed):
    """Which runs of a pool are in each set; what is known is the mean of the pool."""
    rng = np.random.default_rng(seed)
    return [rng.integers(POOL, size=RUNS) for _ in range(SETS)]


def check(covered):
    """Each 95% interval covers in 93 to 97% of the sets."""
    assert covered
    assert {name: n for name, n in covered.items() if not 930 <= n <= 970} == {}


def remembered(measure):
    """A pool's runs are in many sets: each is measured once."""
    known = {}

    def measured(run, *more, **options):
        if id(run) not in known:
            known[id(run)] = measure(run, *more, **options)
        return known[id(run)]

    return measured


def computed_once(monkeypatch, module, name):
    """What a function of a run's arrays gives, too, is computed once."""
    known, function = {}, getattr(module, name)

    def computed(*given):
        key = b" ".join(np.asarray(one).tobytes() for one in given)
        if key not in known:
            known[key] = function(*given)
        return known[key]

    monkeypatch.setattr(module, name, computed)


@pytest.mark.parametrize("count", [20, 40, 100])
def test_means_and_ratios_of_few_units(count):
    """Symmetric and skewed; and a ratio of means, as the dilution share is."""
    rng = np.random.default_rng(9)
    covered = Counter()
    for _ in range(SETS):
        counts, log_odds = rng.normal(-0.8, 0.25, count), rng.normal(-2.6, 0.9, count)
        for name, truth, (low, high) in (
            ("normal", -2.6, mean_interval(log_odds, 0.95)),
            ("gamma", 2.0, mean_interval(rng.gamma(2.0, 1.0, count), 0.95)),
            ("ratio", 0.8 / 2.6, ratio_interval(counts, log_odds, 0.95)),
        ):
            covered[name] += low <= truth <= high
    check(covered)


def rise(values):
    """Last quarter minus first quarter of eight steps."""
    return values[6:].mean() - values[:2].mean()


def test_dilution(monkeypatch):
    """Equal scores but for a gap and a sink: log-odds have a closed form, and all follows."""
    rng = np.random.default_rng(0)
    pool, known = [], []
    for _ in range(POOL):
        text = int(rng.integers(6, 14))
        gaps = rng.normal(-0.5, 0.3) + rng.normal(-0.08, 0.1) * STEPS
        sink = rng.normal(1.0, 0.5)
        sizes = {"visual": 20, "text": text, "shape": (1, 1), "sink": sink}
        pool.append(synthetic_attention(len(STEPS), gap=gaps, **sizes))
        odds = np.log(20 / (np.exp(sink) + text + STEPS)) + gaps
        counts, without = (np.log(20 / (others + text + STEPS)) for others in (1, 0))
        mass, share = expit(odds), 20 / (21 + text + STEPS)
        known.append(
            {
                "exponent": stats.theilslopes(np.log(mass), np.log(share)).slope,
                "evenness": (mass / share).mean(),
                "log_odds": rise(odds),
                "counts": rise(counts),
                "preference": rise(odds - counts),
                "log_odds_without_sink": rise(without + gaps),
                "counts_without_sink": rise(without),
                "preference_without_sink": rise(gaps),
            }
        )
    truth = {name: np.mean([one[name] for one in known]) for name in known[0]}
    for end in ("", "_without_sink"):
        truth[f"dilution_share{end}"] = truth[f"counts{end}"] / truth[f"log_odds{end}"]
    monkeypatch.setattr(dilution_module, "_measure", remembered(dilution_module._measure))
    whole = dilution(pool)
    assert whole.exponent == pytest.approx(truth["exponent"])
    assert whole.change.dilution_share == pytest.approx(truth["dilution_share"])
    covered = Counter()
    for places in drawn(1):
        found = dilution([pool[i] for i in places])
        even = found.evenness["visual"]
        ends = {
            "exponent": (found.exponent_low, found.exponent_high),
            "evenness": (even["low"], even["high"]),
        }
        for table in (found.by_layer, found.by_head):  # there is one of each
            assert ends["exponent"] == tuple(table.loc[0, ["exponent_low", "exponent_high"]])
        for end in ("", "_without_sink"):
            change = getattr(found, f"change{end}")
            shared = (change.dilution_share_low, change.dilution_share_high)
            ends[f"dilution_share{end}"] = shared
            for name in ("log_odds", "counts", "preference"):
                ends[f"{name}{end}"] = (getattr(change, name).low, getattr(change, name).high)
        covered.update({n: int(low <= truth[n] <= high) for n, (low, high) in ends.items()})
    check(covered)


def test_insertion(monkeypatch):
    rng = np.random.default_rng(2)
    pool, known = [], []
    for i in range(POOL):
        text, visual = (int(n) for n in rng.integers(8, 16, 2))
        sizes = {"visual": visual, "text": text, "shape": (1, 1), "scatter": (0.7, i)}
        gap = rng.normal(-0.5, 0.4)
        twins = {
            str(k): synthetic_attention(len(STEPS), copied=(k, 4 if k else 0), gap=gap, **sizes)
            for k in (0, 5, 64)
        }
        pool.append(twins)
        # from the rows of the softmax: which copies are many, and how they score, is chance
        masses = [
            twin["mass"][4:, 0, 0].sel(segment=LOOKED).sum("segment") for twin in twins.values()
        ]
        shares = [(visual + k) / (visual + k + text + STEPS[4:]) for k in (0, 5, 64)]
        odds, counts = (
            [float(np.log(p / (1 - p)).mean()) for p in values] for values in (masses, shares)
        )
        means = [[float(p.mean()) for p in values] for values in (masses, shares)]
        known.append(
            {
                "exponent": stats.theilslopes(*np.log(means)).slope,
                "mass": means[0][1],
                "log_odds": odds[1] - odds[0],
                "counts": counts[1] - counts[0],
                "preference": odds[1] - odds[0] - counts[1] + counts[0],
            }
        )
    truth = {name: np.mean([one[name] for one in known]) for name in known[0]}
    monkeypatch.setattr(insertion_module, "_measure", remembered(insertion_module._measure))
    computed_once(monkeypatch, insertion_module, "exponents")
    whole = insertion(pool)
    assert whole.exponent == pytest.approx(truth["exponent"])
    assert whole.table["log_odds"].iloc[1] == pytest.approx(truth["log_odds"])
    covered = Counter()
    for places in drawn(3):
        found = insertion([pool[i] for i in places])
        row = found.table.iloc[1]
        covered["exponent"] += found.exponent_low <= truth["exponent"] <= found.exponent_high
        for name in ("mass", "log_odds", "counts", "preference"):
            covered[name] += row[f"{name}_low"] <= truth[name] <= row[f"{name}_high"]
    check(covered)


def test_information(monkeypatch):
    """One answer a prompt, its log-ratios of known mean, its parts in an order now and then."""
    rng = np.random.default_rng(4)
    parts = 6
    steps, own = np.arange(parts), np.full(parts, -0.1)
    pool, nats, correlations, of_part = [], [], [], []
    for _ in range(POOL):
        ratios = rng.gamma(2.0, 0.5, parts)
        pool.append([answer(own, np.zeros((0, parts)), without=own - ratios)])
        nats.append(ratios.sum())
        of_part.append(ratios[2])
        correlations.append(stats.spearmanr(ratios, 1 / (2 + steps)).statistic)
    monkeypatch.setattr(information, "_answer", remembered(information._answer))
    computed_once(monkeypatch, information, "spearman")
    covered = Counter()
    for places in drawn(5):
        found = mutual_information([pool[i] for i in places], bins=parts)
        covered["nats"] += found.nats_low <= np.mean(nats) <= found.nats_high
        ends = (found.rank_correlation_low, found.rank_correlation_high)
        covered["rank correlation"] += ends[0] <= np.mean(correlations) <= ends[1]
        part = found.curve.iloc[2]
        covered["nats of a part"] += part["low"] <= np.mean(of_part) <= part["high"]
    check(covered)


def test_averages_and_agreement(monkeypatch):
    """One head, so that both definitions have a formula at hand."""
    rng = np.random.default_rng(6)
    pool = []
    for i in range(POOL):
        gaps = rng.normal(-0.5, 0.4) - rng.gamma(1.0, 0.1) * STEPS
        sizes = {"visual": 8, "text": 6, "shape": (1, 1), "scatter": (1.0, i)}
        pool.append(synthetic_attention(len(STEPS), gap=gaps, **sizes))
    visual, response = (
        np.array([run["mass"][:, 0, 0].sel(segment=s).values for run in pool])
        for s in ("visual", "response")
    )
    prompt_key, response_key = (1 - response[:, 1:]) / 14, response[:, 1:] / STEPS[1:]
    ratios = prompt_key / (prompt_key + response_key)
    ranks = [stats.spearmanr(*pair).statistic for pair in zip(visual[:, 1:], ratios, strict=True)]
    truth = {"mean": visual[:, 4:].mean(), "rank": np.mean(ranks)}
    monkeypatch.setattr(AVERAGES, "visual_share", remembered(AVERAGES.visual_share))
    monkeypatch.setattr(AGREEMENT, "_steps", remembered(AGREEMENT._steps))
    monkeypatch.setattr(AVERAGES, "_region", remembered(AVERAGES._region))
    computed_once(monkeypatch, AVERAGES, "_binned")
    for name in ("_binned", "spearman"):
        computed_once(monkeypatch, AGREEMENT, name)
    names = ("mass", "lookback-ratio")
    assert agreement(pool, names=names).correlations[0, 1] == pytest.approx(truth["rank"])
    covered = Counter()
    for places in drawn(7):
        runs = [pool[i] for i in places]
        half = averages(runs, bins=2).table.iloc[-1]
        covered["mean"] += half["low"] <= truth["mean"] <= half["high"]
        alike = agreement(runs, names=names, bins=1)
        covered["rank"] += alike.low[0, 1] <= truth["rank"] <= alike.high[0, 1]
    check(covered)
