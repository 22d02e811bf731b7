"""The check of Qwen-LookAgain's Theorem 3.1 over runs: exponents, evenness, dilution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, dataset_of
from attnlens.measures.results import NAN, Result, check_confidence, plain_rows
from attnlens.measures.statistics import bootstrap_mean, mann_kendall
from attnlens.measures.theorems.change import (
    WHOLE_RUN,
    Change,
    Pair,
    change,
    differences,
    pairs_for,
)
from attnlens.measures.theorems.evenness import evenness
from attnlens.measures.theorems.exponent import exponents
from attnlens.measures.theorems.log_odds import log_odds


@dataclass(frozen=True)
class Dilution(Result):
    """What runs say about Theorem 3.1 of Qwen-LookAgain (arXiv 2505.23558).

    Parameters
    ----------
    samples : int
        Number of runs.
    steps : tuple of int
        Steps of each.
    key_share_first, key_share_last : float
        r, the fraction of keys that is visual, at the first and the last step: mean over runs.
    exponent, exponent_low, exponent_high : float
        alpha in ``mass ~ r ** alpha``: mean over runs, with a bootstrap interval over runs. Mass is
        the mean over layers and heads.
    falling : float
        Fraction of runs in which mass falls over the steps (Kendall's tau below 0).
    falling_clearly : float
        The same with p below 0.05, corrected for autocorrelation (Hamed and Rao 1998).
    evenness : dict
        By segment: mass over fraction of keys, mean over layers and heads: ``mean``, ``low``,
        ``high`` over runs. The theorem assumes 1 for all.
    change, change_without_sink : Change
        The change of the log-odds of visual mass between the two windows, split.
    between : tuple of str
        The windows, in words.
    by_head : pandas.DataFrame
        ``layer``, ``head``; ``exponent`` with ``exponent_low`` and ``exponent_high``; ``log_odds``,
        ``counts`` and ``preference``: mean change over runs.
    curves : pandas.DataFrame
        One row for each run and step: ``sample``, ``step``, ``key_share``, and ``mass``,
        ``log_odds``, ``counts``, ``preference``, each the mean over layers and heads.
    """

    samples: int
    steps: tuple[int, ...]
    key_share_first: float
    key_share_last: float
    exponent: float
    exponent_low: float
    exponent_high: float
    falling: float
    falling_clearly: float
    evenness: dict[str, dict[str, float]]
    change: Change
    change_without_sink: Change
    between: tuple[str, str]
    by_head: pd.DataFrame
    curves: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; the table by head becomes a list of rows, curves are left out."""
        plain = super().as_dict()
        del plain["curves"]
        plain["by_head"] = plain_rows(self.by_head)
        plain["evenness"] = {
            segment: plain_rows(pd.DataFrame([row]))[0] for segment, row in self.evenness.items()
        }
        plain["verdict"] = self.verdict()
        return plain

    def verdict(self) -> list[str]:
        """Say in sentences what was found, with its figures."""
        interval = f"{self.exponent:.2f} [{self.exponent_low:.2f}, {self.exponent_high:.2f}]"
        said = [
            f"The image's part of the keys goes from {self.key_share_first:.3f} to "
            f"{self.key_share_last:.3f}; mass on it goes as this part to the power of {interval} "
            f"({self.samples} runs): {_compare(self.exponent_low, self.exponent_high)}.",
            f"Mass falls over the steps in {self.falling:.0%} of the runs, clearly in "
            f"{self.falling_clearly:.0%}.",
            self.change.words(),
        ]
        known = {k: v["mean"] for k, v in self.evenness.items() if np.isfinite(v["mean"])}
        if known:
            least, most = (choose(known, key=lambda k: known[k]) for choose in (min, max))
            said.append(
                "The theorem lets each key weigh alike; here a key of "
                f"{most!r} gets {known[most]:.2g} times and one of {least!r} {known[least]:.2g} "
                "times an even part."
            )
        return said


def dilution(
    traces: TraceLike | Sequence[TraceLike],
    *,
    between: Pair | Sequence[Pair] = WHOLE_RUN,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Dilution:
    """Check whether attention to the image falls as key counts say, over runs.

    Parameters
    ----------
    traces : Trace, xarray.Dataset or list of these
        Runs of at least three steps each; intervals need two of them.
    between : pair of windows, or a list of one pair for each run
        What is compared by the split into counts and preference: first and last quarter of the
        run unless told. A window is a region's name, step labels ``(start, stop)``, or two floats:
        fractions of the run.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    confidence, resamples, seed
        Of the bootstrap intervals over runs.

    Returns
    -------
    Dilution

    Raises
    ------
    InputError
        If no trace is given, one has no visual keys or fewer than three steps, layers or heads
        differ between traces, a window holds no step, or a number is out of range.
    """
    check_confidence(confidence)
    runs: list[Any] = list(traces) if isinstance(traces, (list, tuple)) else [traces]
    if not runs:
        raise InputError("An empty list of traces was given; give at least one trace.")
    _check_alike(runs)
    pairs = pairs_for(between, len(runs))
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    chosen: dict[str, Any] = {"layers": layers, "include_copied": include_copied}

    terms = [log_odds(run, **chosen) for run in runs]
    shares = [t["key_share"].values for t in terms]
    masses = [t["mass"] for t in terms]
    overall = [m.mean(("layer", "head")).values for m in masses]
    with np.errstate(divide="ignore"):
        logs = [np.log(share) for share in shares]
        alphas = np.array(
            [float(exponents(np.log(m), s)) for m, s in zip(overall, logs, strict=True)]
        )
        by_head = np.array(
            [exponents(np.log(m.values), s) for m, s in zip(masses, logs, strict=True)]
        )
    trends = [mann_kendall(m[np.isfinite(m)]) for m in overall]
    found = differences(runs, pairs, **chosen)
    low, high = bootstrap_mean(alphas[np.isfinite(alphas)], **options)
    return Dilution(
        samples=len(runs),
        steps=tuple(len(s) for s in shares),
        key_share_first=float(np.mean([s[0] for s in shares])),
        key_share_last=float(np.mean([s[-1] for s in shares])),
        exponent=_mean(alphas),
        exponent_low=low,
        exponent_high=high,
        falling=float(np.mean([t.tau < 0 for t in trends])),
        falling_clearly=float(
            np.mean([t.tau < 0 and t.p_value_autocorrelated < 0.05 for t in trends])
        ),
        evenness=_evenness(runs, layers, options),
        change=change(found, **options),
        change_without_sink=change(differences(runs, pairs, sink=False, **chosen), **options),
        between=(str(pairs[0][0]), str(pairs[0][1])) if _same(pairs) else ("by run", "by run"),
        by_head=_table(found, by_head, options),
        curves=pd.concat([_curve(t, i) for i, t in enumerate(terms)], ignore_index=True),
    )


def _check_alike(runs: list[Any]) -> None:
    first = dataset_of(runs[0])
    for run in runs:
        data = dataset_of(run)
        if data.sizes["step"] < 3:
            raise InputError(
                f"A trace has {data.sizes['step']} steps: give runs of at least three."
            )
        for axis in ("layer", "head"):
            if data[axis].values.tolist() != first[axis].values.tolist():
                raise InputError(
                    f"Traces differ in their {axis}s ({first[axis].values.tolist()} and "
                    f"{data[axis].values.tolist()}): give traces of one model and one choice."
                )


def _curve(terms: xr.Dataset, sample: int) -> pd.DataFrame:
    means = {n: terms[n].mean(("layer", "head")).values for n in ("mass", "log_odds", "preference")}
    return pd.DataFrame(
        {
            "sample": sample,
            "step": terms["step"].values,
            "key_share": terms["key_share"].values,
            **means,
            "counts": terms["counts"].values,
        }
    )


def _same(pairs: list[Pair]) -> bool:
    return all(pair == pairs[0] for pair in pairs)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else NAN


def _evenness(
    runs: list[Any], layers: int | Sequence[int] | None, options: dict[str, Any]
) -> dict[str, dict[str, float]]:
    ratios = np.array([evenness(r, layers=layers).mean(("layer", "head")).values for r in runs])
    table = {}
    for name, column in zip(dataset_of(runs[0])["segment"].values, ratios.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = bootstrap_mean(known, **options)
        table[str(name)] = {"mean": _mean(column), "low": low, "high": high}
    return table


def _table(found: xr.Dataset, alphas: np.ndarray, options: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for i, layer in enumerate(found["layer"].values.tolist()):
        for j, head in enumerate(found["head"].values.tolist()):
            values = alphas[:, i, j]
            low, high = bootstrap_mean(values[np.isfinite(values)], **options)
            row = {"layer": layer, "head": head, "exponent": _mean(values)}
            row |= {"exponent_low": low, "exponent_high": high}
            row |= {
                n: _mean(found[n].values[:, i, j]) for n in ("log_odds", "counts", "preference")
            }
            rows.append(row)
    return pd.DataFrame(rows)


def _compare(low: float, high: float) -> str:
    if np.isnan(low):
        return "one run has no interval"
    if low > 1:
        return "it falls faster than key counts say"
    if high < 0:
        return "it rises while the part falls"
    if low > 0 and high < 1:
        return "it falls, more slowly than key counts say"
    if low <= 1 <= high and low > 0:
        return "key counts alone would do"
    return "whether it falls is not settled"
