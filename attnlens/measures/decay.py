"""How fast attention to the image falls during a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import scipy
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, find_region, inside
from attnlens.measures.results import NAN, Result, check_confidence
from attnlens.measures.share import visual_share
from attnlens.measures.slope import slope_test
from attnlens.measures.statistics import mann_kendall, mean_interval


@dataclass(frozen=True)
class Decay(Result):
    """The trend of visual share over the steps of one trace.

    With fewer than three defined steps every number from `slope` on is NaN.

    Parameters
    ----------
    definition : str
        Definition of the share.
    step_owner : str
        Token that labels a step: ``"predicted"`` or ``"query"``.
    region : str or None
        Region that was measured, if one was asked for.
    start, stop : int or None
        Half-open range of step labels that were used; None if there was no defined step.
    steps : int
        Number of steps with a defined share.
    confidence : float
        Level of the intervals.
    slope, slope_low, slope_high : float
        Theil-Sen slope, in units of the definition per step, and the interval of
        ``attnlens.measures.slope.slope_test``; NaN for fewer than 60 steps.
    line_slope : float
        Slope of the line that the interval and the p value belong to; NaN for fewer than 60 steps.
    half_life, half_life_low, half_life_high : float
        Steps in which the share halves: log(2) over the Theil-Sen slope of its logarithm, with the
        interval that follows from the slope's. Infinite where the share does not fall.
    log_steps : int
        Steps with a positive share, which are those that have a logarithm.
    s : float
        Mann-Kendall statistic: rising pairs of steps minus falling pairs.
    tau : float
        Kendall's tau of the share against the step.
    p_value : float
        Two-sided p of no slope, of the same test; NaN for fewer than 60 steps, which are too few
        to tell.
    """

    definition: str
    step_owner: str
    region: str | None
    start: int | None
    stop: int | None
    steps: int
    confidence: float
    slope: float = NAN
    slope_low: float = NAN
    slope_high: float = NAN
    half_life: float = NAN
    half_life_low: float = NAN
    half_life_high: float = NAN
    log_steps: int = 0
    s: float = NAN
    tau: float = NAN
    line_slope: float = NAN
    p_value: float = NAN

    @property
    def verdict(self) -> str:
        """Falls clearly, rises clearly, no clear trend (all at 5%), or too short to tell."""
        if np.isnan(self.p_value):
            return "too short to tell"
        if self.p_value >= 0.05 or self.tau * self.line_slope <= 0:
            return "no clear trend"
        return "falls clearly" if self.tau < 0 else "rises clearly"

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; with the verdict."""
        return super().as_dict() | {"verdict": self.verdict}


@dataclass(frozen=True)
class GroupDecay(Result):
    """The trend of visual share over several traces.

    Parameters
    ----------
    definition : str
        Definition of the share.
    traces : tuple of Decay
        One result per trace, in the order given.
    samples : int
        Number of traces with a slope.
    confidence : float
        Level of the intervals.
    slope, slope_low, slope_high : float
        Mean of the slopes, in units of the definition per step, with an interval over
        traces (NaN for fewer than eight).
    half_life : float
        Median of the half-lives, in steps; infinite if most shares do not fall.
    half_life_samples : int
        Number of traces with a half-life, infinite ones included.
    """

    definition: str
    traces: tuple[Decay, ...]
    samples: int
    confidence: float
    slope: float
    slope_low: float
    slope_high: float
    half_life: float
    half_life_samples: int


@overload
def decay(
    trace: TraceLike,
    definition: str = ...,
    *,
    region: str | None = ...,
    occurrence: int = ...,
    steps: tuple[int, int] | None = ...,
    layers: int | Sequence[int] | None = ...,
    include_copied: bool = ...,
    confidence: float = ...,
) -> Decay: ...


@overload
def decay(
    trace: Sequence[TraceLike],
    definition: str = ...,
    *,
    region: str | None = ...,
    occurrence: int = ...,
    steps: tuple[int, int] | None = ...,
    layers: int | Sequence[int] | None = ...,
    include_copied: bool = ...,
    confidence: float = ...,
) -> GroupDecay: ...


def decay(
    trace: TraceLike | Sequence[TraceLike],
    definition: str = "mass",
    *,
    region: str | None = None,
    occurrence: int = 1,
    steps: tuple[int, int] | None = None,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    confidence: float = 0.95,
) -> Decay | GroupDecay:
    """Measure how visual share falls, without assuming a shape or well-behaved noise.

    Slope: Theil-Sen, the median of the slopes of all pairs of steps
    (``scipy.stats.theilslopes``). Half-life: from the same fit to the logarithm of the share.
    Trend: Kendall's tau of the share against the step (``scipy.stats.kendalltau``).
    Neighbouring steps are alike, so intervals and p value are those of a line in autocorrelated
    noise (``attnlens.measures.slope.slope_test``), and so need not hold the Theil-Sen slope; a
    run of fewer than 60 steps is too short to tell, and has none. The verdict is at 5%, and calls a
    trend clear only where the line and Kendall's tau go the same way.

    Parameters
    ----------
    trace : Trace, xarray.Dataset or list of these
        What was recorded; a list gives a result per trace and their mean.
    definition : str
        One of ``attnlens.measures.definitions``.
    region : str or None
        Use only the steps of this region, as in ``attnlens.measures.region_summary``.
    occurrence : int
        Which region of that name: 1 for the first.
    steps : tuple of int or None
        Use only the step labels start to stop - 1. Not together with `region`.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    confidence : float
        Level of the intervals, from 0.5 to below 1.

    Returns
    -------
    Decay or GroupDecay
        Steps with an undefined share are left out. Slopes are per step.

    Raises
    ------
    InputError
        If the window is empty or outside the run, the region is not in the trace (the message
        names those that are), the list is empty, `confidence` is out of range, or as in
        ``attnlens.measures.visual_share``.
    """
    check_confidence(confidence, least=0.5)  # below, SciPy takes 0.05 for 0.95 without a word
    if region is not None and steps is not None:
        raise InputError(f"Both region={region!r} and steps={steps!r} were given; give one.")
    single = not isinstance(trace, (list, tuple))
    traces: Sequence[TraceLike] = [trace] if single else trace  # type: ignore[list-item,assignment]
    if not traces:
        raise InputError("An empty list of traces was given; give at least one trace.")
    results = []
    for item in traces:
        share = visual_share(item, definition, layers=layers, include_copied=include_copied)
        if region is not None:
            mask = inside(share, find_region(item, region, occurrence))
        else:
            mask = _window(share, steps)
        results.append(_decay_of(share.isel(step=mask), region, confidence))
    if single:
        return results[0]
    return _group(definition, tuple(results), confidence)


def _window(share: xr.DataArray, steps: tuple[int, int] | None) -> np.ndarray:
    labels = share["step"].values
    if steps is None:
        return np.ones(len(labels), dtype=bool)
    start, stop = steps
    mask = np.asarray((labels >= start) & (labels < stop))
    if not mask.any():
        run = f"{labels[0]} to {labels[-1]}" if len(labels) else "none"
        raise InputError(
            f"The window steps={steps!r} (start, stop) holds no step; steps of the run: {run}."
        )
    return mask


def _decay_of(share: xr.DataArray, region: str | None, confidence: float) -> Decay:
    share = share.isel(step=np.isfinite(share.values))
    labels, values = share["step"].values, share.values
    n = len(values)
    start, stop = (int(labels[0]), int(labels[-1]) + 1) if n else (None, None)
    definition, owner = share.attrs["definition"], share.attrs["step_owner"]
    if n < 3:
        return Decay(definition, owner, region, start, stop, n, confidence)
    slope = scipy.stats.theilslopes(values, labels).slope
    test = slope_test(values, labels, confidence)
    positive = values > 0
    half_life, half_life_low, half_life_high = _half_life(
        labels[positive], np.log(values[positive]), confidence
    )
    trend = mann_kendall(values)
    return Decay(
        definition=definition,
        step_owner=owner,
        region=region,
        start=start,
        stop=stop,
        steps=n,
        confidence=confidence,
        slope=float(slope),
        slope_low=test.low,
        slope_high=test.high,
        half_life=half_life,
        half_life_low=half_life_low,
        half_life_high=half_life_high,
        log_steps=int(positive.sum()),
        s=float(trend.s),
        tau=trend.tau,
        line_slope=test.slope,
        p_value=test.p_value,
    )


def _half_life(
    labels: np.ndarray, logs: np.ndarray, confidence: float
) -> tuple[float, float, float]:
    """Turn the Theil-Sen slope of log share, and an interval of the slope, into steps to halve."""
    if len(logs) < 3:
        return NAN, NAN, NAN
    test = slope_test(logs, labels, confidence)
    estimate, shortest, longest = (
        float(np.log(2) / -rate) if rate < 0 else NAN if np.isnan(rate) else float("inf")
        for rate in (scipy.stats.theilslopes(logs, labels).slope, test.low, test.high)
    )
    return estimate, shortest, longest


def _group(definition: str, results: tuple[Decay, ...], confidence: float) -> GroupDecay:
    used = [result for result in results if np.isfinite(result.slope)]
    slopes = np.array([result.slope for result in used])
    half_lives = [result.half_life for result in used if not np.isnan(result.half_life)]
    low, high = mean_interval(slopes, confidence)
    return GroupDecay(
        definition=definition,
        traces=results,
        samples=len(used),
        confidence=confidence,
        slope=float(slopes.mean()) if used else NAN,
        slope_low=low,
        slope_high=high,
        half_life=float(np.median(half_lives)) if half_lives else NAN,
        half_life_samples=len(half_lives),
    )
