"""The check of Qwen-LookAgain's Theorem 3.1 over runs: exponents, evenness, dilution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.inputs import (
    TraceLike,
    dataset_of,
    runs_of,
    select_layers,
    visible_keys,
)
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import NAN, check_confidence
from attnlens.measures.slope import slope_test
from attnlens.measures.statistics import kendall_tau, mean_interval
from attnlens.measures.theorems.exponent import exponents
from attnlens.measures.theorems.log_odds import (
    TERMS,
    WHOLE_RUN,
    Pair,
    change,
    difference,
    difference_of,
    log_odds,
    pairs_for,
)
from attnlens.measures.theorems.result import Dilution


def dilution(
    traces: TraceLike | Iterable[TraceLike],
    *,
    between: Pair | Sequence[Pair] = WHOLE_RUN,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    confidence: float = 0.95,
) -> Dilution:
    """Check whether attention to the image falls as key counts say, over runs.

    Parameters
    ----------
    traces : Trace, xarray.Dataset, or any iterable of these
        Runs of at least three steps each; intervals need eight of them, that of the share of key
        counts twenty. Each is measured as it comes, so an iterator that loads one at a time
        needs the memory of one.
    between : pair of windows, or a list of one pair for each run
        What is compared by the split into counts and preference: first and last quarter of the
        run by default. A pair is a tuple of two windows; a window is a region's name, step labels
        ``(start, stop)``, or two floats: fractions of the run.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    confidence : float
        Level of the intervals over runs.

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
    chosen: dict[str, Any] = {"layers": layers, "include_copied": include_copied}
    pairs = pairs_for(between)
    found: list[_Run] = []
    used: list[Pair] = []
    for run in runs_of(traces):  # one after the other: a trace of a large model is large
        used.append(next(pairs, ()))  # type: ignore[arg-type]
        if not used[-1]:
            raise InputError(f"{len(found)} pairs of windows and more traces: give a pair for each")
        found.append(_measure(run, used[-1], chosen))
        _check_alike(found[0], found[-1])
    if not found:
        raise InputError("An empty list of traces was given; give at least one trace.")
    if not isinstance(between, tuple) and next(pairs, None) is not None:
        raise InputError(f"More pairs of windows than the {len(found)} traces: give one for each")
    alphas = np.array([run.alpha for run in found])
    low, high = mean_interval(alphas[np.isfinite(alphas)], confidence)
    by_layer, by_head = _by_place(found, confidence)
    steps = [len(run.curve["step"]) for run in found]
    long_enough = np.array([np.isfinite(run.p_value) for run in found])
    return Dilution(
        samples=len(found),
        steps=tuple(steps),
        key_share_first=float(np.mean([run.curve["key_share"][0] for run in found])),
        key_share_last=float(np.mean([run.curve["key_share"][-1] for run in found])),
        exponent=_mean(alphas),
        exponent_low=low,
        exponent_high=high,
        falling=float(np.mean([run.tau < 0 for run in found])),
        falling_clearly=_mean(
            np.array([max(run.tau, run.slope) < 0 and run.p_value < 0.05 for run in found])[
                long_enough
            ]
        ),
        too_short=int((~long_enough).sum()),
        undefined=float(np.mean([run.undefined for run in found])),
        evenness=_evenness(found, confidence),
        change=change(_along_samples([run.change for run in found]), confidence=confidence),
        change_without_sink=change(
            _along_samples([run.change_without_sink for run in found]), confidence=confidence
        ),
        between=(_words(used[0][0]), _words(used[0][1])) if _same(used) else ("", ""),
        settings={**chosen, "confidence": confidence},
        by_layer=by_layer,
        by_head=by_head,
        curves=pd.DataFrame(
            {"sample": np.repeat(np.arange(len(found)), steps)}
            | {name: np.concatenate([run.curve[name] for run in found]) for name in found[0].curve}
        ),
    )


def evenness(trace: TraceLike, *, layers: int | Sequence[int] | None = None) -> xr.DataArray:
    """Compare each segment's mass with its fraction of the visible keys.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.

    Returns
    -------
    xarray.DataArray, float64, (segment, layer, head)
        Mass over fraction of keys, the mean over steps at which the head sees keys of the segment:
        1 where they get what an even spread would give them, 5 where five times that. NaN for
        segments without visible keys. A step belongs to its predicted token.

    Raises
    ------
    InputError
        If `trace` is none, or a layer was not recorded.
    """
    data = select_layers(dataset_of(trace), layers)
    keys = visible_keys(data).transpose(..., "segment").values
    share = keys / keys.sum(-1, keepdims=True)
    share = share if share.ndim == 4 else share[:, None, None]
    mass = data["mass"].transpose("step", "layer", "head", "segment").values.astype(np.float64)
    ratio = np.divide(mass, share, out=np.full(mass.shape, np.nan), where=share > 0)
    return xr.DataArray(
        mean_of_known(np.moveaxis(ratio, (0, 3), (-1, 0))),
        {axis: data[axis] for axis in ("segment", "layer", "head")},
        ("segment", "layer", "head"),
        "evenness",
        {"long_name": "mass over fraction of keys", "step_owner": "predicted"},
    )


@dataclass
class _Run:
    """What is kept of one run."""

    curve: dict[str, np.ndarray]
    """By step."""
    alpha: float
    by_layer: np.ndarray
    by_head: np.ndarray
    tau: float
    slope: float
    p_value: float
    undefined: float
    places: dict[str, list]
    """Labels of the axes that follow."""
    evenness: np.ndarray
    """[segment, layer, head]."""
    change: np.ndarray
    """[term, layer, head]: of ``TERMS``."""
    change_without_sink: np.ndarray


def _measure(run: Any, pair: Pair, chosen: dict[str, Any]) -> _Run:
    steps = dataset_of(run).sizes["step"]
    if steps < 3:
        raise InputError(f"A trace has {steps} steps: give runs of at least three.")
    terms = log_odds(run, **chosen)
    curve = _curve(terms)
    mass = curve["mass"]
    known = np.isfinite(mass)
    trend = slope_test(mass[known], np.flatnonzero(known), 0.95)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = terms["key_share"]  # one for each head where keys were hidden from some
        of_layers = share.mean("head") if "head" in share.dims else share
        alpha = float(exponents(np.log(mass), np.log(curve["key_share"])))
        by_layer = exponents(np.log(terms["mass"].mean("head").values), np.log(of_layers.values))
        by_head = exponents(np.log(terms["mass"].values), np.log(share.values))
    even = evenness(run, layers=chosen["layers"])
    return _Run(
        curve=curve,
        alpha=alpha,
        by_layer=by_layer,
        by_head=by_head,
        tau=kendall_tau(mass[known]),
        slope=trend.slope,
        p_value=trend.p_value,
        undefined=float(np.isnan(terms["log_odds"].values).mean()),
        places={str(axis): even[axis].values.tolist() for axis in even.dims},
        evenness=even.values,
        change=_terms(difference_of(run, terms, pair)),
        change_without_sink=_terms(difference(run, pair, sink=False, **chosen)),
    )


def _check_alike(first: _Run, other: _Run) -> None:
    for axis in ("layer", "head"):
        one, two = (run.places[axis] for run in (first, other))
        if one != two:
            raise InputError(
                f"Traces differ in their {axis}s ({one} and {two}): give traces of one model and "
                "one choice."
            )


def _terms(changes: xr.Dataset) -> np.ndarray:
    return np.array([changes[name].values for name in TERMS])


def _curve(terms: xr.Dataset) -> dict[str, np.ndarray]:
    means = {
        name: mean_of_known(terms[name].values.reshape(terms.sizes["step"], -1))
        for name in ("key_share", "mass", "log_odds", "preference", "counts")
    }
    return {"step": terms["step"].values, **means}


def _along_samples(changes: list[np.ndarray]) -> xr.Dataset:
    """Put runs of the same layers and heads together."""
    axes = ("sample", "layer", "head")
    by_term = np.stack(changes, axis=1)
    return xr.Dataset({name: (axes, of) for name, of in zip(TERMS, by_term, strict=True)})


def _same(pairs: list[Pair]) -> bool:
    return all(pair == pairs[0] for pair in pairs)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else NAN


def _words(window: Any) -> str:
    """Say which steps a window holds."""
    if isinstance(window, str):
        return window
    start, stop = window
    if isinstance(start, float):
        return f"{100 * start:.0f}-{stop:.0%} of the run"
    return f"steps {start}-{stop - 1}"


def _evenness(found: list[_Run], confidence: float) -> dict[str, dict[str, float]]:
    ratios = np.stack([run.evenness for run in found])
    ratios = mean_of_known(ratios.reshape(*ratios.shape[:2], -1))  # [run, segment]
    table = {}
    for name, column in zip(found[0].places["segment"], ratios.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = mean_interval(known, confidence, within=(0, np.inf))
        table[str(name)] = {"mean": _mean(column), "low": low, "high": high}
    return table


def _by_place(found: list[_Run], confidence: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables by layer, and by layer and head: means over runs."""
    places = found[0].places
    names = [*TERMS, *(f"evenness_{name}" for name in places["segment"])]
    values = np.stack([np.concatenate([run.change, run.evenness]) for run in found], axis=1)
    terms = dict(zip(names, values, strict=True))  # each [run, layer, head]
    layers, heads = places["layer"], places["head"]
    of_layers = np.array([run.by_layer for run in found])
    of_heads = np.array([run.by_head for run in found])
    by_layer = [
        {"layer": layer}
        | _row(
            of_layers[:, i], {name: mean_of_known(v[:, i]) for name, v in terms.items()}, confidence
        )
        for i, layer in enumerate(layers)
    ]
    by_head = [
        {"layer": layers[i], "head": heads[j]}
        | _row(of_heads[:, i, j], {name: v[:, i, j] for name, v in terms.items()}, confidence)
        for i in range(len(layers))
        for j in range(len(heads))
    ]
    return pd.DataFrame(by_layer), pd.DataFrame(by_head)


def _row(alphas: np.ndarray, values: dict[str, np.ndarray], confidence: float) -> dict[str, float]:
    low, high = mean_interval(alphas[np.isfinite(alphas)], confidence)
    row = {"exponent": _mean(alphas), "exponent_low": low, "exponent_high": high}
    return row | {name: _mean(of_runs) for name, of_runs in values.items()}
