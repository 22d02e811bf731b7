"""How the regions of a response differ in attention to the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.measures.inputs import TraceLike, inside, regions_of
from attnlens.measures.share import visual_share

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

        Where nothing can be said the value is missing. ``attrs`` holds those of the share.

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
