"""How fast attention to the image falls during a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import xarray as xr
from scipy import stats

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, find_region, inside
from attnlens.measures.results import NAN, Decay, GroupDecay, check_confidence
from attnlens.measures.share import visual_share
from attnlens.measures.slope import slope_test
from attnlens.measures.statistics import mann_kendall, mean_interval


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
    slope = stats.theilslopes(values, labels).slope
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
        for rate in (stats.theilslopes(logs, labels).slope, test.low, test.high)
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
    )
