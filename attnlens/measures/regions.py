"""How the regions of a response differ in attention to the image, and its rise where one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import RegionLike, TraceLike, find_region, inside, regions_of
from attnlens.measures.results import NAN, Result, check_confidence
from attnlens.measures.share import visual_share
from attnlens.measures.statistics import mean_interval, signed_rank

COLUMNS = {
    "name": "string",
    "occurrence": "Int64",
    "start": "Int64",
    "stop": "Int64",
    "closed": "boolean",
    "steps": "int64",
    "mean": "float64",
    "peak": "float64",
    "peak_step": "Int64",
    "area": "float64",
}
"""The columns of a region summary and their types."""


@dataclass(frozen=True)
class Refocus(Result):
    """The rise of visual share inside a region over the steps just before it.

    Parameters
    ----------
    definition : str
        Definition of the share.
    step_owner : str
        Token that labels a step: ``"predicted"`` or ``"query"``.
    region : str
        Name of the region.
    occurrence : int
        Which region of that name: 1 for the first.
    unit : str
        What the pairs are: ``"layer x head"``, ``"layer"`` or ``"sample"``.
    units : int
        Number of pairs that were used.
    inside, before : float
        Mean share inside the region and before it, averaged over units.
    rise : float
        ``inside - before``, in units of the definition.
    rise_low, rise_high : float
        Interval of the mean rise over traces (NaN for fewer than eight).
    confidence : float
        Level of the interval.
    p_value : float
        Two-sided Wilcoxon signed-rank p over traces (NaN for fewer than six).
    effect_size : float
        Matched-pairs rank-biserial correlation, from -1 (every unit falls) to 1 (every unit
        rises).
    inside_steps, before_steps : tuple of int
        Steps inside and before, one number per trace.
    shortened : bool
        Whether some trace had fewer steps before the region than inside it.
    """

    definition: str
    step_owner: str
    region: str
    occurrence: int
    unit: str
    units: int
    inside: float
    before: float
    rise: float
    rise_low: float
    rise_high: float
    confidence: float
    p_value: float
    effect_size: float
    inside_steps: tuple[int, ...]
    before_steps: tuple[int, ...]
    shortened: bool


def region_summary(
    trace: TraceLike,
    definition: str = "mass",
    *,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
) -> pd.DataFrame:
    """Summarise attention to the image by region.

    A step belongs to the region of the token that owns it under the definition. Under ``mass``,
    ``mean-weight``, ``lookback-ratio`` and ``no-sink`` that is the predicted token: the region of
    tokens start to stop - 1 takes steps start to stop - 1. Under ``look-back`` and
    ``reflection-v`` it is the query token: the same region takes steps start + 1 to stop, and loses
    the last one if it ends with the response, whose last token is never fed in.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded. A bare dataset knows the innermost region of each token only, so a
        region that holds another appears there in parts.
    definition : str
        One of ``attnlens.measures.definitions``.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.

    Returns
    -------
    pandas.DataFrame
        One row per occurrence of a region in order of start, then ``outside`` (steps whose token
        is in no region) and ``all`` (every step). Columns:

        - ``name``, ``occurrence`` (1 for the first of its name);
        - ``start``, ``stop``: half-open span of response tokens, tags included;
        - ``closed``: whether the closing tag was generated;
        - ``steps``: number of steps with a defined value;
        - ``mean``, ``peak``: of the share over those steps, in the units of the definition;
        - ``peak_step``: label of the step of the peak;
        - ``area``: sum of the share over those steps (units of the definition times steps).

        A value that cannot be known is missing. ``attrs`` holds those of the share.

    Raises
    ------
    InputError
        As ``attnlens.measures.visual_share``.
    """
    share = visual_share(trace, definition, layers=layers, include_copied=include_copied)
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    covered = np.zeros(share.sizes["step"], dtype=bool)
    for region in regions_of(trace):
        mask = inside(share, region)
        covered |= mask
        seen[region.name] = seen.get(region.name, 0) + 1
        row = {
            "name": region.name,
            "occurrence": seen[region.name],
            "start": region.start,
            "stop": region.stop,
            "closed": region.closed,
        }
        rows.append({**row, **_describe(share, mask)})
    rows.append({"name": "outside", **_describe(share, ~covered)})
    rows.append({"name": "all", **_describe(share, np.ones_like(covered))})
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    table.attrs = dict(share.attrs)
    return table


def _describe(share: xr.DataArray, mask: np.ndarray) -> dict[str, Any]:
    mask = mask & np.isfinite(share.values)
    values = share.values[mask]
    if len(values) == 0:
        return {"steps": 0}
    peak = int(values.argmax())
    return {
        "steps": len(values),
        "mean": float(values.mean()),
        "peak": float(values[peak]),
        "peak_step": int(share["step"].values[mask][peak]),
        "area": float(values.sum()),
    }


def refocus(
    trace: TraceLike | Sequence[TraceLike],
    definition: str = "mass",
    *,
    region: str = "back",
    occurrence: int = 1,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    confidence: float = 0.95,
) -> Refocus:
    """Measure the rise of visual share inside a region.

    Rise: mean share over the steps of the region minus mean share over the same number of steps
    just before it, or over as many as there are (then `shortened` is true). Steps belong to a
    region as in ``attnlens.measures.region_summary``. The rise is taken per unit and averaged.

    For one trace the units are all layer and head pairs, or layers where the definition reduces
    heads itself. They describe this run; there is no interval and no p value, since heads share the
    noise of their run (a test over heads called 65 to 100% of runs without a rise significant). For
    several traces the units are traces, and interval and test speak of the questions that they were
    drawn from.

    The interval is that of the mean rise (``attnlens.measures.statistics.mean_interval``), the
    test is ``scipy.stats.wilcoxon``.

    Parameters
    ----------
    trace : Trace, xarray.Dataset or list of these
        What was recorded.
    definition : str
        One of ``attnlens.measures.definitions``.
    region : str
        Name of the region.
    occurrence : int
        Which region of that name: 1 for the first.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    confidence : float
        Level of the interval over several traces.

    Returns
    -------
    Refocus
        Steps with an undefined share, and units without a defined step inside or before, are left
        out.

    Raises
    ------
    InputError
        If the region is not in a trace (the message names those that are), has no measured step
        inside or before it, the list is empty, or as in ``attnlens.measures.visual_share``.
    """
    check_confidence(confidence)
    single = not isinstance(trace, (list, tuple))
    traces: Sequence[TraceLike] = [trace] if single else trace  # type: ignore[list-item,assignment]
    if not traces:
        raise InputError("An empty list of traces was given; give at least one trace.")
    per_head = get_definition(definition).per_head
    reduction = ("none" if per_head else "layer") if single else "mean"
    within, ahead, inside_steps, before_steps = [], [], [], []
    for number, item in enumerate(traces):
        share = visual_share(
            item, definition, layers=layers, reduction=reduction, include_copied=include_copied
        )
        place = "" if single else f" of trace {number}"
        try:
            found = find_region(item, region, occurrence)
        except InputError as error:
            raise error if single else InputError(f"Trace {number}: {error}") from error
        inner, outer = _windows(share, found, place)
        within.append(inner.mean("step", skipna=True).values.ravel())
        ahead.append(outer.mean("step", skipna=True).values.ravel())
        inside_steps.append(inner.sizes["step"])
        before_steps.append(outer.sizes["step"])
    inside_mean, before_mean = np.concatenate(within), np.concatenate(ahead)
    defined = np.isfinite(inside_mean) & np.isfinite(before_mean)
    inside_mean, before_mean = inside_mean[defined], before_mean[defined]
    if not defined.any():
        raise InputError(
            f"Definition {definition!r} has no defined value inside region {region!r} and before "
            "it; choose another definition or region."
        )
    rise = inside_mean - before_mean
    p_value, effect_size = signed_rank(rise)
    low = high = NAN
    if single:
        p_value = NAN
    else:
        low, high = mean_interval(rise, confidence)
    return Refocus(
        definition=definition,
        step_owner=share.attrs["step_owner"],
        region=region,
        occurrence=occurrence,
        unit=("layer x head" if per_head else "layer") if single else "sample",
        units=len(rise),
        inside=float(inside_mean.mean()),
        before=float(before_mean.mean()),
        rise=float(rise.mean()),
        rise_low=low,
        rise_high=high,
        confidence=confidence,
        p_value=p_value,
        effect_size=effect_size,
        inside_steps=tuple(inside_steps),
        before_steps=tuple(before_steps),
        shortened=any(
            before < within for before, within in zip(before_steps, inside_steps, strict=True)
        ),
    )


def _windows(
    share: xr.DataArray, region: RegionLike, place: str
) -> tuple[xr.DataArray, xr.DataArray]:
    """Cut out the steps of a region and as many just before it, of those with any value."""
    axes = [dim for dim in share.dims if dim != "step"]
    share = share.isel(step=share.notnull().any(dim=axes).values)
    positions = np.flatnonzero(inside(share, region))
    if len(positions) == 0 or positions[0] == 0:
        where = "inside" if len(positions) == 0 else "before"
        raise InputError(
            f"Region {region.name!r}{place} (response tokens {region.start} to {region.stop - 1}) "
            f"has no measured step {where} it, so there is nothing to compare; give a trace that "
            "goes on for at least a step on both sides of the start of the region."
        )
    first, count = int(positions[0]), len(positions)
    return share.isel(step=positions), share.isel(step=slice(max(0, first - count), first))
