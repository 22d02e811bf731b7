"""Attention to the prompt against generated text, as in Lookback Lens (arXiv 2407.07071)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.measures.definitions.base import (
    Definition,
    Segments,
    ratio,
    segment_keys,
    segment_mass,
)
from attnlens.segments import PROMPT_SEGMENTS


def lookback_ratio(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Compare the mean weight of a context key with that of a generated key.

    Formula: ``mean(context) / (mean(context) + mean(generated))``, where context is every prompt
    key (sink, system, visual, vision_end, query), not the image alone, and generated is the
    response.

    - Source: Lookback Lens (arXiv 2407.07071).
    - Step owner: the predicted token.
    - Denominator: mean weight of a context key plus mean weight of a generated key.
    - Keys: mean, without keys that a knock-out hides.
    - Reduction: ratio per head, then mean over heads, then mean over layers (the paper keeps
      every head as a feature).
    - Copied visual tokens are on neither side unless they are asked to count as visual; then
      they are context.

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace.
    visual : tuple of str
        Segments that count as visual, all of them context.

    Returns
    -------
    numpy.ndarray, float64, (step, layer, head)
        Ratio between 0 and 1, per layer and head, at one step; NaN at steps without generated
        keys, which step 0 always is.
    """
    context_segments = tuple(dict.fromkeys((*PROMPT_SEGMENTS, *visual)))
    context = segment_mass(data, context_segments) / segment_keys(data, context_segments)
    generated = segment_mass(data, ("response",)) / segment_keys(data, ("response",))
    return ratio(context, context + generated)


DEFINITION = Definition(
    name="lookback-ratio",
    description="Mean weight of a prompt key against that of a generated key (all of the prompt).",
    formula="mean(prompt keys) / (mean(prompt keys) + mean(response keys))",
    source="Lookback Lens (arXiv 2407.07071)",
    units="ratio",
    long_name="lookback ratio",
    step_owner="predicted",
    whole="it is about all keys of the prompt",
    first_step=1,
    compute=lookback_ratio,
)
