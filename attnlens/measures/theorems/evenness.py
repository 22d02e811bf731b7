"""The assumption of the theorems: each key gets about as much attention as any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.measures.inputs import TraceLike, dataset_of, select_layers, visible_keys


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
    keys = visible_keys(data)
    share = keys / keys.sum("segment")
    ratio = (data["mass"].astype(np.float64) / share.where(share > 0)).mean("step")
    ratio = ratio.transpose("segment", "layer", "head")
    ratio.attrs = {"long_name": "mass over fraction of keys", "step_owner": "predicted"}
    return ratio.rename("evenness")
