"""Visual share of the attention from the image on, as in Look-Back (arXiv 2507.03019)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.measures.definitions.base import Definition, Segments, ratio, segment_mass
from attnlens.measures.recovery import mean_of_known

FROM_IMAGE_ON = ("visual", "vision_end", "query", "response", "copied")
"""The segments of the denominator: every key from the first visual key on."""


def look_back(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Divide the mass on the visual keys by the mass from the first visual key on.

    Formula, per layer, with ``a`` the mean of A over heads:
    ``a(visual) / (a(visual) + a(vision_end) + a(query) + a(response) + a(copied))``.

    - Source: Look-Back (arXiv 2507.03019), its trend script.
    - Step owner: the query token. The step that predicts the first response token is left out,
      because its query token belongs to the prompt.
    - Denominator: the keys from the first visual key on; sink and system come before it.
    - Keys: sum.
    - Reduction: mean over heads before the division, mean over layers after it. So there is no
      value for a single head.

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace.
    visual : tuple of str
        Segments in the numerator.

    Returns
    -------
    numpy.ndarray, float64, (step, layer)
        Fraction, per layer, at one step; steps from 1 on. NaN where the denominator is zero.
    """
    part, whole = (mean_of_known(segment_mass(data, s)) for s in (visual, FROM_IMAGE_ON))
    return ratio(part, whole)[data["step"].values > 0]


DEFINITION = Definition(
    name="look-back",
    description="Visual share of the mass from the first visual key on, heads averaged first.",
    formula="visual / (visual + vision_end + query + response + copied), heads averaged first",
    curves_formula="image: visual / D, query text: query / D, generated text: response / D, "
    "with D = visual + vision_end + query + response + copied, heads averaged first",
    source="Look-Back (arXiv 2507.03019)",
    units="fraction of attention mass from the image on",
    long_name="visual share from the image on",
    step_owner="query",
    first_step=1,
    compute=look_back,
    per_head=False,
)
