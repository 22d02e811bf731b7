"""How much of a change of visual attention is key counts, and how much the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, find_region
from attnlens.measures.results import NAN, Result
from attnlens.measures.statistics import bootstrap_mean, bootstrap_ratio
from attnlens.measures.theorems.log_odds import TERMS, log_odds

Window = str | tuple[int, int] | tuple[float, float]
"""Steps of a run: a region's name (its first occurrence), step labels ``(start, stop)``, or, as two
floats, fractions of the run from 0.0 to 1.0."""

Pair = tuple[Window, Window]
"""What is compared: before and after."""

WHOLE_RUN: Pair = ((0.0, 0.25), (0.75, 1.0))
"""The first and the last quarter of a run."""


@dataclass(frozen=True)
class Term(Result):
    """One term of a change, in natural logarithms of odds.

    Parameters
    ----------
    mean, low, high : float
        After minus before: mean over samples (of means over steps, layers and heads), with a
        bootstrap interval over samples.
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
        the means with a bootstrap interval over samples. Above 1 where preference went the other
        way. NaN where the interval of the change holds 0: there is no change to share out.
    """

    samples: int
    log_odds: Term
    counts: Term
    preference: Term
    dilution_share: float
    dilution_share_low: float
    dilution_share_high: float

    def words(self) -> str:
        """Say it in a sentence."""
        total = self.log_odds
        if np.isnan(self.dilution_share):
            return (
                f"Log-odds of visual mass changed by {total.mean:+.2f} "
                f"[{total.low:+.2f}, {total.high:+.2f}] over {self.samples} runs: no change that "
                "could be shared out."
            )
        direction = "fall" if total.mean < 0 else "rise"
        return (
            f"Log-odds of visual mass {direction} by {abs(total.mean):.2f} over {self.samples} "
            f"runs: key counts {self.counts.mean:+.2f}, preference {self.preference.mean:+.2f}; "
            f"{self.dilution_share:.0%} [{self.dilution_share_low:.0%}, "
            f"{self.dilution_share_high:.0%}] of the {direction} is key counts."
        )


def differences(
    traces: Sequence[TraceLike],
    between: Sequence[Pair],
    *,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    sink: bool = True,
) -> xr.Dataset:
    """Return each run's change of the terms between two windows.

    Parameters
    ----------
    traces
        The runs.
    between
        One pair of windows for each.
    layers, include_copied, sink
        As in ``log_odds``.

    Returns
    -------
    xarray.Dataset, float64
        ``log_odds``, ``counts`` and ``preference`` (sample, layer, head): mean over the steps of
        the second window minus that of the first. At a head and step where the log-odds are
        undefined counts are left out too, so that the terms stay a sum.

    Raises
    ------
    InputError
        If a region is not in a trace, or a window holds no step.
    """
    rows = []
    for trace, (before, after) in zip(traces, between, strict=True):
        terms = log_odds(trace, layers=layers, include_copied=include_copied, sink=sink)
        terms["counts"] = terms["log_odds"] - terms["preference"]
        first, second = (_steps(trace, terms, window) for window in (before, after))
        rows.append(
            terms[list(TERMS)].isel(step=second).mean("step")
            - terms[list(TERMS)].isel(step=first).mean("step")
        )
    return xr.concat(rows, dim="sample")


def change(
    found: xr.Dataset, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Change:
    """Sum up the differences of all samples.

    Parameters
    ----------
    found
        What ``differences`` returns, or some of its layers and heads.
    confidence, resamples, seed
        Of the bootstrap intervals over samples.
    """
    means = {name: found[name].mean(("layer", "head")).values for name in TERMS}
    known = np.isfinite(means["log_odds"])
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    terms = {}
    for name, values in means.items():
        low, high = bootstrap_mean(values[known], **options)  # type: ignore[arg-type]
        terms[name] = Term(float(values[known].mean()) if known.any() else NAN, low, high)
    total = terms["log_odds"]
    share = share_low = share_high = NAN
    if total.low > 0 or total.high < 0:
        share = terms["counts"].mean / total.mean
        share_low, share_high = bootstrap_ratio(
            means["counts"][known],
            means["log_odds"][known],
            **options,  # type: ignore[arg-type]
        )
    return Change(
        int(known.sum()),
        **terms,
        dilution_share=share,
        dilution_share_low=share_low,
        dilution_share_high=share_high,
    )


def pairs_for(between: Pair | Sequence[Pair], count: int) -> list[Pair]:
    """Give each of so many runs its pair of windows.

    Raises
    ------
    InputError
        If there are pairs for another number of runs.
    """
    if isinstance(between, tuple):
        return [between] * count
    pairs = list(between)
    if len(pairs) != count:
        raise InputError(f"{len(pairs)} pairs of windows for {count} traces: give one for each")
    return pairs


def _steps(trace: TraceLike, terms: xr.Dataset, window: Window) -> np.ndarray:
    labels = terms["step"].values
    if isinstance(window, str):
        region = find_region(trace, window)
        start, stop = region.start, region.stop
    elif all(isinstance(bound, float) for bound in window):
        start, stop = (round(labels[0] + bound * len(labels)) for bound in window)
    else:
        start, stop = (int(bound) for bound in window)
    inside = np.flatnonzero((labels >= start) & (labels < stop))
    if not len(inside):
        raise InputError(
            f"The window {window!r} holds no step; steps of the run: {labels[0]} to {labels[-1]}."
        )
    return inside
