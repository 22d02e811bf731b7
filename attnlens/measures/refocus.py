"""How much attention to the image rises when a region begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import RegionLike, TraceLike, find_region, inside
from attnlens.measures.results import NAN, Refocus, check_confidence
from attnlens.measures.share import visual_share
from attnlens.measures.statistics import mean_interval, signed_rank


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
