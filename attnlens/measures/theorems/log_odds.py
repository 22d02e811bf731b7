"""Log-odds of visual mass, split exactly into key counts and preference.

With visual keys V, the rest R, and scores s of one row of attention,

    log(M_V / M_R) = log(|V| / |R|) + [log mean over V of exp(s) - log mean over R of exp(s)],

since ``M_V = sum over V of exp(s) / sum over all of exp(s)``. Keys that are hidden from a head
(``Knockout``) are in neither set. The first term is **counts**, what
key counts alone would give; the second is **preference**, what the model adds. It needs no scores:
the recorded mass and the counts give both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, dataset_of, select_layers, visible_keys

TERMS = ("log_odds", "counts", "preference")
"""The sum and its two terms."""


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
    visual = ["visual", "copied"] if include_copied else ["visual"]
    left_out = [*visual, *([] if sink else ["sink"])]
    rest = [str(s) for s in data["segment"].values if str(s) not in left_out]
    keys = visible_keys(data)
    visual_keys, rest_keys = (keys.sel(segment=s).sum("segment") for s in (visual, rest))
    if not bool((data["keys"].sel(segment=visual) > 0).any()):
        raise InputError(
            "The trace has no visual keys, so attention to the image cannot be measured; "
            "record a prompt with an image."
        )
    if not bool((visual_keys > 0).any()):
        raise InputError(
            "Every visual key of the trace is hidden from every head at every step, so there are "
            "no log-odds; hide them from some heads, or from a later step on."
        )
    mass = data["mass"].astype(np.float64)
    # the rest is added up, since 1 - M has lost its digits where M is close to 1
    looked, other = (mass.sel(segment=s).sum("segment") for s in (visual, rest))
    result = xr.Dataset(
        {
            "log_odds": _log_ratio(looked, other),
            "counts": _log_ratio(visual_keys, rest_keys),
            "mass": looked / (looked + other),
            "key_share": visual_keys / (visual_keys + rest_keys),
        }
    )
    result["preference"] = result["log_odds"] - result["counts"]
    kept = {"step", "layer", "head", "region", "predicted_token"}
    result = result.drop_vars([str(c) for c in result.coords if str(c) not in kept])
    result.attrs = {
        "step_owner": "predicted",
        "include_copied": "yes" if include_copied else "no",
        "sink": "counted" if sink else "left out",
    }
    return result.transpose("step", "layer", "head")


def _log_ratio(over: xr.DataArray, under: xr.DataArray) -> xr.DataArray:
    """Natural logarithm of a ratio, NaN where one of the two is 0."""
    defined = (over > 0) & (under > 0)
    return xr.apply_ufunc(np.log, over.where(defined) / under.where(defined))
