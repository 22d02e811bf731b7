"""Attention mass on the image with the sink key taken out of the denominator."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.measures.definitions.base import Definition, Segments, ratio, segment_mass
from attnlens.segments import SEGMENTS

WITHOUT_SINK = tuple(name for name in SEGMENTS if name != "sink")


def no_sink(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Divide the mass on the visual keys by the mass that the sink leaves.

    Formula: ``visual / (1 - sink)``. The denominator is added up from the other segments, which
    is the same number without the rounding of ``1 - sink`` where the sink takes nearly all.

    - Source: attention sinks (arXiv 2309.17453).
    - Step owner: the predicted token.
    - Denominator: all visible keys but the very first.
    - Keys: sum.
    - Reduction: ratio per head, then mean over heads, then mean over layers. A head whose whole
      mass is on the sink has no value and is left out of the mean.

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace.
    visual : tuple of str
        Segments that count as visual.

    Returns
    -------
    numpy.ndarray, float64, (step, layer, head)
        Fraction of the attention mass outside the sink, per layer and head, at one step.
    """
    return ratio(segment_mass(data, visual), segment_mass(data, WITHOUT_SINK))


DEFINITION = Definition(
    name="no-sink",
    description="Visual mass as a fraction of the mass outside the sink key.",
    formula="visual / (1 - sink)",
    curves_formula="image: visual / (1 - sink), query text: query / (1 - sink), "
    "generated text: response / (1 - sink)",
    source="attention sinks (arXiv 2309.17453)",
    units="fraction of attention mass outside the sink",
    long_name="visual share without the sink",
    step_owner="predicted",
    compute=no_sink,
)
