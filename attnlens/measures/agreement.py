"""Where definitions of visual attention agree over the same runs, and where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.correlation import spearman
from attnlens.measures.definitions import DEFINITIONS, get_definition
from attnlens.measures.inputs import TraceLike, runs_of
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import NAN, Result, check_confidence
from attnlens.measures.share import visual_share
from attnlens.measures.statistics import mean_interval

MOST_BINS = 1000


@dataclass(frozen=True)
class Agreement(Result):
    """How well definitions agree over runs.

    Parameters
    ----------
    names : tuple of str
        The definitions, in the order of every axis below.
    samples : int
        Number of runs.
    bins : numpy.ndarray, float, (bin + 1,)
        Edges of the bins of the position in the answer, 0 (first step) to 1 (after the last).
    curves : numpy.ndarray, float, (definition, bin)
        Share divided by its own mean over the run, without unit: mean over the steps of a bin, then
        over the runs that have a step there. NaN where none has.
    correlations : numpy.ndarray, float, (definition, definition)
        Spearman rank correlation over the steps of a run, from -1 to 1: mean over the runs that
        have one. NaN where none has.
    runs : numpy.ndarray, int, (definition, definition)
        Number of runs behind each correlation.
    low, high : numpy.ndarray, float, (definition, definition)
        Interval of the correlation over runs; NaN for fewer than eight.
    confidence : float
        Level of the intervals.
    """

    names: tuple[str, ...]
    samples: int
    bins: np.ndarray
    curves: np.ndarray
    correlations: np.ndarray
    runs: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float

    def least_alike(self) -> tuple[int, int] | None:
        """Return the places of the two definitions with the lowest correlation, if one has any."""
        apart = np.where(np.tri(len(self.names), dtype=bool), np.nan, self.correlations)
        if not np.isfinite(apart).any():
            return None
        row, column = np.unravel_index(int(np.nanargmin(apart)), apart.shape)
        return int(row), int(column)

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; arrays become lists, and undefined numbers None."""
        plain = super().as_dict()
        for name, values in plain.items():
            if isinstance(values, np.ndarray):
                plain[name] = _lists(values)
        return plain


def agreement(
    traces: TraceLike | Iterable[TraceLike],
    *,
    names: Sequence[str] | None = None,
    bins: int = 20,
    layers: int | Sequence[int] | None = None,
    confidence: float = 0.95,
) -> Agreement:
    """Compare definitions of visual attention over the same runs.

    Values of one forward pass are compared: step t of one definition with step t of another,
    whether its owner is the token fed in or the token predicted. Steps at which one of the two is
    undefined (step 0 under ``look-back``) are left out of their correlation. Inserted visual tokens
    do not count as visual.

    Parameters
    ----------
    traces : Trace, xarray.Dataset, or any iterable of these
        The runs. Each is measured as it comes, so an iterator may load one at a time.
    names : sequence of str or None
        Two or more definitions; None takes all.
    bins : int
        Number of equal parts of the answer, 1 to 1,000. Step t of a run of T steps is at
        (t + 1/2) / T.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    confidence : float
        Level of the intervals over runs.

    Returns
    -------
    Agreement

    Raises
    ------
    InputError
        If no trace is given, one has no visual keys, a name is unknown or comes twice, fewer than
        two are given, or a number is out of range.
    """
    check_confidence(confidence)
    chosen = _checked_names(names)
    if (
        isinstance(bins, bool)
        or not isinstance(bins, int | np.integer)
        or not 0 < bins <= MOST_BINS
    ):
        raise InputError(f"bins is {bins!r}: give a whole number from 1 to {MOST_BINS}")
    curves, ranks = [], []
    for run in runs_of(traces):  # one after the other: a trace of a large model is large
        table = _steps(run, chosen, layers)
        curves.append(_binned(table, bins))
        ranks.append([[spearman(a, b) for b in table] for a in table])
    if not curves:
        raise InputError("An empty list of traces was given; give at least one trace.")
    by_run = np.moveaxis(np.array(ranks), 0, -1)  # (definition, definition, run)
    ends = np.full((*by_run.shape[:2], 2), NAN)
    for i, j in zip(*np.triu_indices(len(chosen), 1), strict=True):
        known = by_run[i, j][np.isfinite(by_run[i, j])]
        ends[i, j] = ends[j, i] = mean_interval(known, confidence, within=(-1, 1))
    return Agreement(
        names=chosen,
        samples=len(curves),
        bins=np.linspace(0, 1, bins + 1),
        curves=mean_of_known(np.moveaxis(np.array(curves), 0, -1)),
        correlations=mean_of_known(by_run),
        runs=np.isfinite(by_run).sum(-1),
        low=ends[..., 0],
        high=ends[..., 1],
        confidence=confidence,
    )


def _lists(values: np.ndarray) -> list[Any]:
    if values.ndim > 1:
        return [_lists(row) for row in values]
    return [float(value) if np.isfinite(value) else None for value in values]


def _checked_names(names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return tuple(DEFINITIONS)
    listed = [names] if isinstance(names, str) else list(names)
    chosen = tuple(get_definition(name).name for name in listed)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise InputError(
            f"names is {names!r}: give two or more different ones of {', '.join(DEFINITIONS)}"
        )
    return chosen


def _steps(run: TraceLike, names: Sequence[str], layers: Any) -> np.ndarray:
    """Share at every step of a run, (definition, step); NaN where it is undefined."""
    series = [visual_share(run, name, layers=layers) for name in names]
    steps = np.unique(np.concatenate([one["step"].values for one in series]))
    table = np.full((len(names), len(steps)), np.nan)
    for row, one in zip(table, series, strict=True):
        row[np.searchsorted(steps, one["step"].values)] = one.values
    return table


def _binned(table: np.ndarray, bins: int) -> np.ndarray:
    """Shares over their own mean, (definition, bin): mean over the steps of each bin."""
    means = mean_of_known(table)[:, None]
    relative = np.divide(table, means, out=np.full_like(table, np.nan), where=means > 0)
    count = table.shape[1]
    place = ((2 * np.arange(count) + 1) * bins) // (2 * max(count, 1))
    return np.stack([mean_of_known(relative[:, place == i]) for i in range(bins)], axis=1)
