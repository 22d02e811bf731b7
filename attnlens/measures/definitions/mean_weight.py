"""Mean attention weight of a visual key, as in Qwen-LookAgain (arXiv 2505.23558)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.measures.definitions.base import (
    Definition,
    Segments,
    has_keys,
    segment_keys,
    segment_mass,
)


def mean_weight(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Average one attention row over the visual keys.

    Formula: ``(1 / |V|) sum over j in V of A[t, l, h, j]``.

    - Source: Qwen-LookAgain (arXiv 2505.23558), Fig. 2 and 9.
    - Step owner: the predicted token (the paper counts generated tokens and does not say more).
    - Denominator: all visible keys, then the number of visual keys that the head sees; values
      shrink with the size of the image.
    - Keys: mean, without keys that a knock-out hides; 0 for a head that all of them are hidden
      from, so that means over heads are always over the same ones.
    - Reduction: mean over heads, then mean over layers.

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace.
    visual : tuple of str
        Segments that count as visual.

    Returns
    -------
    numpy.ndarray, float64, (step, layer, head)
        Mean attention weight per key, per layer and head, at one step; NaN where there is no key.
    """
    mass, keys = segment_mass(data, visual), segment_keys(data, visual)
    hidden = np.isnan(keys) & has_keys(data, visual)[:, None, None]
    return np.where(hidden, 0.0, mass / keys)


DEFINITION = Definition(
    name="mean-weight",
    description="Mean attention weight of a visual key.",
    formula="visual / number of visual keys",
    curves_formula="image: visual / number of visual keys, query text: query / number of query "
    "keys, generated text: response / number of response keys",
    source="Qwen-LookAgain (arXiv 2505.23558)",
    units="attention weight",
    long_name="mean attention weight per visual token",
    step_owner="predicted",
    compute=mean_weight,
    curves_name="mean attention weight per visual, query or generated token",
)
