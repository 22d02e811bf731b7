"""Intervals of the theorems' estimators hold the known answer as often as they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from test_measures_information import answer

from attnlens.measures import dilution, insertion, mutual_information
from attnlens.measures.theorems import dilution as dilution_module
from attnlens.measures.theorems import information
from attnlens.measures.theorems import insertion as insertion_module
from attnlens.measures.theorems.synthetic import synthetic_attention

SETS, RUNS, POOL = 1000, 100, 400
OPTIONS = {"resamples": 499}
STEPS = np.arange(8)


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

    def measured(run, *more):
        if id(run) not in known:
            known[id(run)] = measure(run, *more)
        return known[id(run)]

    return measured


def test_dilution(monkeypatch):
    """Equal scores but for a gap: log-odds are log(visual / others) + gap, and all follows."""
    rng = np.random.default_rng(0)
    pool, known = [], []
    for i in range(POOL):
        text = int(rng.integers(6, 14))
        gaps = rng.normal(-0.5, 0.3) + rng.normal(-0.08, 0.1) * STEPS
        sizes = {"visual": 20, "text": text, "layers": 1, "heads": 1}
        pool.append(synthetic_attention(len(STEPS), gap=gaps, seed=i, **sizes))
        counts = np.log(20 / (text + STEPS))
        mass, share = expit(counts + gaps), 20 / (20 + text + STEPS)
        known.append(
            {
                "exponent": stats.theilslopes(np.log(mass), np.log(share)).slope,
                "evenness": (mass / share).mean(),
                "counts": counts[6:].mean() - counts[:2].mean(),
                "preference": gaps[6:].mean() - gaps[:2].mean(),
            }
        )
    truth = {name: np.mean([one[name] for one in known]) for name in known[0]}
    truth["log_odds"] = truth["counts"] + truth["preference"]
    truth["dilution_share"] = truth["counts"] / truth["log_odds"]
    monkeypatch.setattr(dilution_module, "_measure", remembered(dilution_module._measure))
    whole = dilution(pool, **OPTIONS)
    assert whole.exponent == pytest.approx(truth["exponent"])
    assert whole.change.dilution_share == pytest.approx(truth["dilution_share"])
    covered = Counter()
    for seed, places in enumerate(drawn(1)):
        found = dilution([pool[i] for i in places], seed=seed, **OPTIONS)
        even, change = found.evenness["visual"], found.change
        ends = {
            "exponent": (found.exponent_low, found.exponent_high),
            "evenness": (even["low"], even["high"]),
            "dilution_share": (change.dilution_share_low, change.dilution_share_high),
        }
        for name in ("log_odds", "counts", "preference"):
            ends[name] = (getattr(change, name).low, getattr(change, name).high)
        covered.update({n: int(low <= truth[n] <= high) for n, (low, high) in ends.items()})
    check(covered)


def test_insertion(monkeypatch):
    rng = np.random.default_rng(2)
    pool, known = [], []
    for i in range(POOL):
        text, gap = int(rng.integers(6, 14)), rng.normal(-0.5, 0.4)
        sizes = {"visual": 16, "text": text, "layers": 1, "heads": 1, "gap": gap, "seed": i}
        pool.append(
            {
                str(k): synthetic_attention(len(STEPS), copied=(k, 4 if k else 0), **sizes)
                for k in (0, 16, 64)
            }
        )
        others = text + STEPS[4:]
        masses, shares = (
            np.array([expit(np.log((16 + k) / others) + g).mean() for k in (0, 16, 64)])
            for g in (gap, 0.0)
        )
        slope = stats.theilslopes(np.log(masses), np.log(shares)).slope
        known.append({"exponent": slope, "mass": masses[1], "log_odds": np.log(5)})
    truth = {name: np.mean([one[name] for one in known]) for name in known[0]}
    monkeypatch.setattr(insertion_module, "_measure", remembered(insertion_module._measure))
    whole = insertion(pool, **OPTIONS)
    assert whole.exponent == pytest.approx(truth["exponent"])
    assert whole.table["log_odds"].iloc[-1] == pytest.approx(truth["log_odds"])
    covered = Counter()
    for seed, places in enumerate(drawn(3)):
        found = insertion([pool[i] for i in places], seed=seed, **OPTIONS)
        row = found.table.iloc[1]
        covered["exponent"] += found.exponent_low <= truth["exponent"] <= found.exponent_high
        covered["mass"] += row["mass_low"] <= truth["mass"] <= row["mass_high"]
    check(covered)


def test_information(monkeypatch):
    """One answer a prompt, its log-ratios of known mean, its parts in an order now and then."""
    rng = np.random.default_rng(4)
    parts = 6
    steps, own = np.arange(parts), np.full(parts, -0.1)
    pool, nats, correlations = [], [], []
    for _ in range(POOL):
        ratios = rng.gamma(2.0, 0.5, parts)
        pool.append([answer(own, np.zeros((0, parts)), without=own - ratios)])
        nats.append(ratios.sum())
        correlations.append(stats.spearmanr(ratios, 1 / (2 + steps)).statistic)
    monkeypatch.setattr(information, "_answer", remembered(information._answer))
    covered = Counter()
    for seed, places in enumerate(drawn(5)):
        found = mutual_information([pool[i] for i in places], bins=parts, seed=seed, **OPTIONS)
        covered["nats"] += found.nats_low <= np.mean(nats) <= found.nats_high
        ends = (found.rank_correlation_low, found.rank_correlation_high)
        covered["rank correlation"] += ends[0] <= np.mean(correlations) <= ends[1]
    check(covered)
