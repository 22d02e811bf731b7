"""Print how often the package's intervals cover the truth, and how often its tests reject noise.

Each cell calls the function that the package itself calls, on simulated data whose truth is known.
Intervals have level 95% and should cover the truth in 92 to 98% of cases. Tests have level 5% and
should reject in 2 to 8%. A cell says so if the function gives no answer for that number of units,
or for 9 of 10 sets of that many; otherwise its number is over the sets with an answer. The tables
of ``docs/statistics.md`` are the output of this script.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import stats

from attnlens.measures.slope import slope_test
from attnlens.measures.statistics import (
    mann_kendall,
    mcnemar,
    mean_interval,
    median_interval,
    proportion_difference,
    proportion_interval,
    ratio_interval,
    signed_rank,
)

COUNTS = (5, 8, 12, 20, 60, 200)
CORRELATIONS = (0.0, 0.5, 0.8, 0.95)
PROPORTIONS = (0.5, 0.9, 0.98)
COVERAGE, REJECTION = (0.92, 0.98), (0.02, 0.08)
LEAST_ANSWERED = 0.1

Draw = Callable[[np.random.Generator, int], np.ndarray]
MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "uniform": (lambda rng, n: rng.random(n), 0.5),
    "Student's t, 5 degrees": (lambda rng, n: rng.standard_t(5, size=n), 0.0),
    "beta(0.5, 3)": (lambda rng, n: rng.beta(0.5, 3.0, size=n), 1 / 7),
    "gamma, shape 2": (lambda rng, n: rng.gamma(2.0, size=n), 2.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "lognormal, sigma 0.5": (
        lambda rng, n: rng.lognormal(0.0, 0.5, size=n),
        float(np.exp(0.125)),
    ),
    "lognormal, sigma 1": (lambda rng, n: rng.lognormal(size=n), float(np.exp(0.5))),
    "two clumps": (lambda rng, n: rng.choice([-1, 1], n) + 0.2 * rng.normal(size=n), 0.0),
    "one in twenty is 1": (
        lambda rng, n: (rng.random(n) < 0.05) + 0.1 * rng.normal(size=n),
        0.05,
    ),
}


def rate(draws: Iterable[bool | None]) -> float | None:
    """Return the fraction of answers that are true; None if there is hardly an answer."""
    return weighted((answer, 1.0) for answer in draws)


def weighted(answers: Iterable[tuple[bool | None, float]]) -> float | None:
    """Return the probability that an answer is true; None if there is hardly ever one."""
    total = answered = true = 0.0
    for answer, weight in answers:
        total += weight
        answered += weight * (answer is not None)
        true += weight * (answer is True)
    return true / answered if answered > LEAST_ANSWERED * total else None


def holds(ends: tuple[float, float], truth: float) -> bool | None:
    """Whether an interval covers the truth; None if there is no interval."""
    return None if np.isnan(ends).any() else bool(ends[0] - 1e-12 <= truth <= ends[1] + 1e-12)


def rejects(p_value: float) -> bool | None:
    """Whether a test rejects at 5%; None if there is no test."""
    return None if np.isnan(p_value) else bool(p_value < 0.05)


def autoregressive(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Simulate a series whose neighbours have this correlation, after a run-in."""
    values = rng.normal(size=count + 300)
    for i in range(1, len(values)):
        values[i] += correlation * values[i - 1]
    return values[300:]


def mean(kind: str, count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Coverage of the interval of a mean."""
    draw, truth = MEANS[kind]
    return rate(holds(mean_interval(draw(rng, count), 0.95), truth) for _ in range(replicates))


Pair = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
SHARES: dict[str, tuple[Pair, float]] = {
    "a clear change": (
        lambda rng, n: (rng.normal(-0.8, 0.25, n), rng.normal(-1.8, 0.9, n)),
        4 / 13,
    ),
    "a weak change": (lambda rng, n: (rng.normal(-0.8, 0.25, n), rng.normal(0.0, 1.5, n)), 1.0),
    "both skewed": (
        lambda rng, n: (-rng.lognormal(0.0, 0.7, n), -rng.lognormal(0.0, 0.7, n)),
        0.5,
    ),
    "against each other, skewed": (
        lambda rng, n: (-rng.lognormal(0.0, 0.5, n), 0.5 * rng.lognormal(0.0, 0.5, n)),
        2.0,
    ),
}
"""Counts and preference, which add up to the change, and the share of the counts."""


def ratio(kind: str, count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Coverage of the interval of a ratio of means, such as the share of counts in a change."""
    draw, truth = SHARES[kind]
    found = []
    for _ in range(replicates):
        counts, preference = draw(rng, count)
        found.append(holds(ratio_interval(counts, counts + preference, 0.95), truth))
    return rate(found)


def proportion(truth: float, count: int) -> float | None:
    """Coverage of the interval of a proportion, exact by the binomial distribution."""
    right = np.arange(count + 1)
    return weighted(
        (holds(proportion_interval(np.repeat([1.0, 0.0], [k, count - k]), 0.95), truth), weight)
        for k, weight in zip(right, stats.binom.pmf(right, count, truth), strict=True)
    )


def fractions(truth: float, count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Coverage for fractions of two to four facts per unit, with a correlation of 0.3."""
    draws = []
    for _ in range(replicates):
        facts = rng.integers(2, 5, count)
        chance = rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, count)
        ends = proportion_interval(rng.binomial(facts, chance) / facts, 0.95)
        draws.append(holds(ends, truth))
    return rate(draws)


def pairs(
    truth: float, change: float, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield pairs of answers, ``truth`` right before and ``truth - change`` after.

    There is one for each number of answers won and lost, with its probability. If more are right
    after, none is lost; otherwise the two answers to a question are independent.
    """
    winning, losing = (1 - truth) * (truth - change), truth * (1 - truth + change)
    if change < 0:
        winning, losing = -change, 0.0
    for won in range(count + 1):
        for lost in range(count + 1 - won):
            chances = [winning, losing, 1 - winning - losing]
            weight = stats.multinomial.pmf([won, lost, count - won - lost], count, chances)
            if weight > 1e-7:
                before = np.repeat([0.0, 1.0, 1.0], [won, lost, count - won - lost])
                after = np.repeat([1.0, 0.0, 1.0], [won, lost, count - won - lost])
                yield before, after, float(weight)


def difference(truth: float, change: float, count: int) -> float | None:
    """Coverage of the interval of a paired difference of proportions, exact."""
    return weighted(
        (holds(proportion_difference(before, after, 0.95)[1:], -change), weight)
        for before, after, weight in pairs(truth, change, count)
    )


def paired_test(truth: float, count: int) -> float | None:
    """Rejection of McNemar's test if nothing changed, exact."""
    return weighted(
        (rejects(mcnemar(before, after)), weight)
        for before, after, weight in pairs(truth, 0.0, count)
    )


def ranks(count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Rejection of the signed-rank test on differences around 0."""
    return rate(rejects(signed_rank(rng.normal(size=count))[0]) for _ in range(replicates))


def median(count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Coverage of the interval of a median of lognormal values."""
    return rate(
        holds(median_interval(rng.lognormal(size=count), 0.95), 1.0) for _ in range(replicates)
    )


def under_white_noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Simulate a series with a correlation of 0.95 under as much white noise."""
    slow = autoregressive(rng, count, 0.95) * np.sqrt(1 - 0.95**2)
    return slow + rng.normal(size=count)


def levels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Simulate a series that jumps about every 30 steps, with half as much noise."""
    of_step = np.cumsum(rng.random(count) < 1 / 30)
    return rng.normal(size=count + 1)[of_step] + 0.5 * rng.normal(size=count)


def slope(
    draw: Draw, count: int, rng: np.random.Generator, replicates: int
) -> tuple[float | None, float | None]:
    """Coverage of the interval and rejection of the test of a slope, on a series without one."""
    steps = np.arange(count)
    found = [slope_test(draw(rng, count), steps, 0.95) for _ in range(replicates)]
    covered = rate(holds((one.low, one.high), 0.0) for one in found)
    return covered, rate(rejects(one.p_value) for one in found)


def order(count: int, rng: np.random.Generator, replicates: int) -> float | None:
    """Rejection of the Mann-Kendall test on independent values."""
    return rate(rejects(mann_kendall(rng.normal(size=count)).p_value) for _ in range(replicates))


def rows(replicates: int, seed: int) -> Iterator[tuple[str, str, list[float | None]]]:
    """Yield rows: what is measured, "interval" or "test", and a number for each of COUNTS."""
    rng = np.random.default_rng(seed)

    def over_counts(measure: Callable[[int], float | None]) -> list[float | None]:
        return [measure(count) for count in COUNTS]

    for kind in MEANS:
        found = over_counts(lambda n, kind=kind: mean(kind, n, rng, replicates))  # type: ignore[misc]
        yield f"mean, {kind} (Hall)", "interval", found
    for kind in SHARES:
        found = over_counts(lambda n, kind=kind: ratio(kind, n, rng, replicates))  # type: ignore[misc]
        yield f"ratio of means, {kind} (Fieller, Hall)", "interval", found
    yield "median (order statistics)", "interval", over_counts(lambda n: median(n, rng, replicates))
    for p in PROPORTIONS:
        found = over_counts(lambda n, p=p: proportion(p, n))  # type: ignore[misc]
        yield f"proportion {p} (Wilson, exact)", "interval", found
    for p in PROPORTIONS:
        found = over_counts(lambda n, p=p: fractions(p, n, rng, replicates))  # type: ignore[misc]
        yield f"proportion {p}, fractions within units (Wilson)", "interval", found
    for p, change in (
        (0.5, 0.0),
        (0.9, 0.0),
        (0.98, 0.0),
        (0.9, 0.4),
        (0.98, 0.08),
        (0.92, -0.08),
        (0.98, -0.02),
    ):
        found = over_counts(
            lambda n, p=p, change=change: difference(p, change, n)  # type: ignore[misc]
        )
        yield f"change from {p} to {p - change:.2g}, paired (Tango, exact)", "interval", found
    for p in PROPORTIONS:
        found = over_counts(lambda n, p=p: paired_test(p, n))  # type: ignore[misc]
        yield f"no change at {p}, paired (McNemar, exact)", "test", found
    yield (
        "paired differences (signed ranks)",
        "test",
        over_counts(lambda n: ranks(n, rng, replicates)),
    )
    yield (
        "order of independent values (Mann-Kendall)",
        "test",
        over_counts(lambda n: order(n, rng, replicates)),
    )
    series: dict[str, Draw] = {
        f"neighbours' correlation {phi:g}": lambda rng, n, phi=phi: autoregressive(rng, n, phi)  # type: ignore[misc]
        for phi in CORRELATIONS
    }
    series["0.95 under as much white noise"] = under_white_noise
    series["jumps every 30 steps"] = levels
    for kind, draw in series.items():
        both = [slope(draw, n, rng, replicates) for n in COUNTS]
        name = f"slope of one series, {kind}"
        yield name, "interval", [covered for covered, _ in both]
        yield name, "test", [rejected for _, rejected in both]


def cell(value: float | None, low: float, high: float) -> str:
    """Write a number, in bold if it is out of bounds."""
    if value is None:
        return "refused"
    return f"{value:.3f}" if low <= round(value, 3) <= high else f"**{value:.3f}**"


def table(found: list[tuple[str, str, list[float | None]]], what: str) -> str:
    """Write the rows of one kind as Markdown."""
    bounds = COVERAGE if what == "interval" else REJECTION
    head = " | ".join(f"n = {count}" for count in COUNTS)
    lines = [f"| {what} | {head} |", "| --- |" + " --- |" * len(COUNTS)]
    for name, kind, values in found:
        if kind == what:
            lines.append(f"| {name} | {' | '.join(cell(v, *bounds) for v in values)} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=4000, help="simulations for each cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = list(rows(options.replicates, options.seed))
    print(f"{options.replicates} simulations for each cell, seed {options.seed}.\n")
    print(table(found, "interval"), table(found, "test"), sep="\n\n")


if __name__ == "__main__":
    main()
