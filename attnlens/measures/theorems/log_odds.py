"""Log-odds of visual mass, split exactly into key counts and preference.

With visual keys V, the rest R, and scores s of one row of attention,

    log(M_V / M_R) = log(|V| / |R|) + [log mean over V of exp(s) - log mean over R of exp(s)],

since ``M_V = sum over V of exp(s) / sum over all of exp(s)``. Keys that are hidden from a head
(``Knockout``) are in neither set. The first term is **counts**, what
key counts alone would give; the second is **preference**, what the model adds. It needs no scores:
the recorded mass and the counts give both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions.base import has_keys, ratio
from attnlens.measures.inputs import (
    TraceLike,
    dataset_of,
    find_region,
    select_layers,
    visible_keys,
)
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import NAN, Result, interval_text
from attnlens.measures.statistics import LEAST_FOR_MEANS, mean_interval, ratio_interval
from attnlens.text import counted

AXES = ("step", "layer", "head")
TERMS = ("log_odds", "counts", "preference")
"""The sum and its two terms."""

Window = str | tuple[int, int] | tuple[float, float]
"""Steps of a run: a region's name (its first occurrence), step labels ``(start, stop)``, or, as two
floats, fractions of the run from 0.0 to 1.0."""

Pair = tuple[Window, Window]
"""What is compared: before and after."""

WHOLE_RUN: Pair = ((0.0, 0.25), (0.75, 1.0))
"""The first and the last quarter of a run."""


def log_odds(
    trace: TraceLike,
    *,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    sink: bool = True,
) -> xr.Dataset:
    """Split the log-odds of visual mass at every step, layer and head.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual; otherwise they are of the
        rest.
    sink : bool
        Whether the very first key, on which attention rests that looks for nothing
        (arXiv 2309.17453), counts among the rest. Without it the row is divided by what is left.

    Returns
    -------
    xarray.Dataset, float64
        ``log_odds`` (step, layer, head), natural logarithm; ``counts`` (step,); ``preference``
        (step, layer, head), their difference: NaN where a head gives the image, or everything
        else, no mass at all, or sees none of it. ``mass`` (step, layer, head), fraction of
        attention mass that is visual; ``key_share`` (step,), fraction of visible keys that is
        visual: r of Qwen-LookAgain (arXiv 2505.23558). ``counts`` and ``key_share`` are (step,
        layer, head) where keys were hidden. A step belongs to its predicted token.

    Raises
    ------
    InputError
        If the trace has no visual keys, all of them are hidden at every step, or a layer was not
        recorded.
    """
    data = select_layers(dataset_of(trace), layers)
    # plain arrays: xarray aligns at every operation, which takes longer than the arithmetic
    looked_at = ["visual", "copied"] if include_copied else ["visual"]
    names = data["segment"].values
    visual = np.isin(names, looked_at)
    rest = ~visual & np.isin(names, [] if sink else ["sink"], invert=True)
    if not has_keys(data, looked_at).any():
        raise InputError(
            "The trace has no visual keys, so attention to the image cannot be measured; "
            "record a prompt with an image."
        )
    keys = visible_keys(data).transpose(..., "segment")
    visual_keys, rest_keys = (keys.values[..., chosen].sum(-1) for chosen in (visual, rest))
    if not (visual_keys > 0).any():
        raise InputError(
            "Every visual key of the trace is hidden from every head at every step, so there are "
            "no log-odds; hide them from some heads, or from a later step on."
        )
    mass = data["mass"].transpose(*AXES, "segment").values.astype(np.float64)
    # the rest is added up, since 1 - M has lost its digits where M is close to 1
    looked, other = (np.nansum(mass[..., chosen], -1) for chosen in (visual, rest))
    odds, counts = _log_ratio(looked, other), _log_ratio(visual_keys, rest_keys)
    by_step = counts if counts.ndim == 3 else counts[:, None, None]
    axes = [str(axis) for axis in keys.dims[:-1]]
    kept = {"step", "layer", "head", "region", "predicted_token"}
    return xr.Dataset(
        {
            "log_odds": (AXES, odds),
            "counts": (axes, counts),
            "mass": (AXES, ratio(looked, looked + other)),
            "key_share": (axes, ratio(visual_keys, visual_keys + rest_keys)),
            "preference": (AXES, odds - by_step),
        },
        {name: (one.dims, one.values) for name, one in data.coords.items() if name in kept},
        {
            "step_owner": "predicted",
            "include_copied": "yes" if include_copied else "no",
            "sink": "counted" if sink else "left out",
        },
    )


def _log_ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Natural logarithm of a ratio, NaN where one of the two is 0."""
    defined = (over > 0) & (under > 0)
    return np.log(np.divide(over, under, out=np.full(over.shape, np.nan), where=defined))


@dataclass(frozen=True)
class Term(Result):
    """One term of a change, in natural logarithms of odds.

    Parameters
    ----------
    mean, low, high : float
        After minus before: mean over samples (of means over steps, layers and heads), with an
        interval over samples.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Change(Result):
    """A change of the log-odds of visual mass, split into its two terms.

    Parameters
    ----------
    samples : int
        Number of runs in which both windows have a defined step.
    log_odds, counts, preference : Term
        The change, and its terms: it is their sum.
    dilution_share, dilution_share_low, dilution_share_high : float
        ``counts / log_odds``: the fraction of the change that follows from key counts, the ratio of
        the means with an interval over samples (none for fewer than twenty). Above 1 where
        preference worked against counts, below 0 where counts worked against preference. NaN where
        the interval of the change holds 0, or fewer than eight samples do not all change in one
        direction: there is no change to share out.
    """

    samples: int
    log_odds: Term
    counts: Term
    preference: Term
    dilution_share: float
    dilution_share_low: float
    dilution_share_high: float

    def words(self, before: str = "", after: str = "") -> str:
        """Say it in a text; ``before`` and ``after`` name the windows."""
        total, counts, preference = self.log_odds, self.counts, self.preference
        text = (
            f"Log-odds of visual mass, from {before} to {after}"
            if before
            else "Log-odds of visual mass"
        )
        ends = interval_text(total.low, total.high, "+.2f")
        text += f": {total.mean:+.2f}{ends} over {counted(self.samples, 'run')}"
        text += f" = key counts {counts.mean:+.2f} and preference {preference.mean:+.2f}; "
        if np.isnan(self.dilution_share):
            if 1 < self.samples < LEAST_FOR_MEANS and total.mean:
                return f"{text}too few runs, which go different ways, to share it out."
            return f"{text}no change that could be shared out."
        direction = "fall" if total.mean < 0 else "rise"
        share, low, high = self.dilution_share, self.dilution_share_low, self.dilution_share_high
        if share < 0:
            return f"{text}the {direction} is preference, against key counts."
        if share > 1 + 1e-9:
            return f"{text}the {direction} is key counts, against preference."
        return (
            f"{text}{share:.0%}{interval_text(low, high, '.0%')} of the {direction} is key counts."
        )


def difference(
    trace: TraceLike,
    between: Pair,
    *,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    sink: bool = True,
) -> xr.Dataset:
    """Return a run's change of the terms between two windows.

    Returns
    -------
    xarray.Dataset, float64
        ``log_odds``, ``counts`` and ``preference`` (layer, head): mean over the steps of the second
        window minus that of the first. At a head and step where the log-odds are undefined counts
        are left out too, so that the terms stay a sum.

    Raises
    ------
    InputError
        If a region is not in the trace, or a window holds no step.
    """
    terms = log_odds(trace, layers=layers, include_copied=include_copied, sink=sink)
    return difference_of(trace, terms, between)


def difference_of(trace: TraceLike, terms: xr.Dataset, between: Pair) -> xr.Dataset:
    """Return the same from terms that ``log_odds`` has given for the run."""
    first, second = (_steps(trace, terms, window) for window in between)
    values = {name: terms[name].values for name in ("log_odds", "preference")}
    values["counts"] = values["log_odds"] - values["preference"]
    changes = {}
    for name in TERMS:
        after, before = (
            mean_of_known(np.moveaxis(values[name][steps], 0, -1)) for steps in (second, first)
        )
        changes[name] = (AXES[1:], after - before)
    return xr.Dataset(changes, {axis: terms[axis] for axis in AXES[1:]})


def change(found: xr.Dataset, *, confidence: float = 0.95) -> Change:
    """Sum up the differences of all samples.

    ``found`` holds what ``difference`` returns for each run, along ``sample``.
    """
    means = {
        name: mean_of_known(values.reshape(len(values), -1))
        for name, values in ((name, found[name].values) for name in TERMS)
    }
    known = np.isfinite(means["log_odds"])
    terms = {}
    for name, values in means.items():
        low, high = mean_interval(values[known], confidence)
        terms[name] = Term(float(values[known].mean()) if known.any() else NAN, low, high)
    total = terms["log_odds"]
    share = share_low = share_high = NAN
    # of few samples, which give no interval, all must go one way
    directions = set(np.sign(means["log_odds"][known].round(9)))
    few = known.sum() < LEAST_FOR_MEANS and directions in ({1.0}, {-1.0})
    if few or total.low > 0 or total.high < 0:
        share = terms["counts"].mean / total.mean
        share_low, share_high = ratio_interval(
            means["counts"][known], means["log_odds"][known], confidence
        )
    return Change(
        int(known.sum()),
        **terms,
        dilution_share=share,
        dilution_share_low=share_low,
        dilution_share_high=share_high,
    )


def pairs_for(between: Pair | Sequence[Pair]) -> Iterator[Pair]:
    """Give the runs their pairs of windows: the one over and over, or one for each.

    Raises
    ------
    InputError
        If it is neither a pair of windows nor a list of these.
    """
    if _is_pair(between):
        return repeat(between)  # type: ignore[arg-type]
    if isinstance(between, (list, tuple)) and between and all(map(_is_pair, between)):
        return iter(between)
    raise InputError(
        f"between={between!r}: give two windows, such as ('think', 'back'), ((0, 40), (40, 80)) "
        "or ((0.0, 0.25), (0.75, 1.0)), or a list of such pairs"
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_window, value))


def _is_window(value: Any) -> bool:
    if isinstance(value, str):
        return True
    numbers = isinstance(value, (list, tuple)) and len(value) == 2
    return numbers and all(isinstance(n, (int, float, np.integer)) for n in value)


def _steps(trace: TraceLike, terms: xr.Dataset, window: Window) -> np.ndarray:
    labels = terms["step"].values
    if isinstance(window, str):
        region = find_region(trace, window)
        start, stop = region.start, region.stop
    elif any(isinstance(bound, float) for bound in window):
        if not all(0 <= bound <= 1 for bound in window):
            raise InputError(
                f"The window {window!r} is no part of a run: give fractions from 0.0 to 1.0, or "
                "whole numbers of steps."
            )
        start, stop = (round(labels[0] + bound * len(labels)) for bound in window)
    else:
        start, stop = (int(bound) for bound in window)
    inside = np.flatnonzero((labels >= start) & (labels < stop))
    if not len(inside):
        raise InputError(
            f"The window {window!r} holds no step; steps of the run: {labels[0]} to {labels[-1]}."
        )
    return inside
