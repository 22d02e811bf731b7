"""Head-summed weight per visual key with weight, as in Reflection-V (arXiv 2509.12132)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions.base import Definition, Segments, has_keys, segment_mass


def reflection_v(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Sum attention over heads and average it over the visual keys that have any.

    Formula, per layer, with ``s[j] = sum over h of A[t, l, h, j]``:
    ``sum over j in V of s[j] / |{j in V : s[j] > 0}|``.

    - Source: Reflection-V (arXiv 2509.12132), its script for text-to-vision attention.
    - Step owner: the query token, since the script reads the attention rows of response tokens.
      It reads no row of the prompt, so it starts at what is step 1 here; step 0 is kept here and
      belongs to the last prompt token.
    - Denominator: all visible keys, then the number of visual keys with non-zero weight. A trace
      holds float32 weights whatever dtype the model runs in, so that a weight is 0 only where a key
      is hidden or its weight is less than about 1e-45, 103 below the row's largest in scores. The
      script reads the weights of eager attention, which are cast to the model's dtype: bfloat16
      keeps them down to about 5e-41, nearly as far, but float16 turns those under 3e-8 into 0 (17
      below). On four answers of the testbed no key was without weight in any layer and step in
      float32 and bfloat16, here or in eager weights; of eager weights in float16 3.5 % of the keys
      were, and the values up to 22 times (on average 1.6 times) those of here.
    - Keys: mean over the keys with weight.
    - Reduction: sum over heads before the division, mean over layers after it. So there is no
      value for a single head, and values grow with the number of heads.

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace, with ``visual_nonzero`` (step, layer).
    visual : tuple of str
        Must be ``("visual",)``: keys with weight are counted among those alone.

    Returns
    -------
    numpy.ndarray, float64, (step, layer)
        Attention weight per key, summed over heads, per layer, at one step; 0 where no visual key
        has any weight.

    Raises
    ------
    InputError
        If the dataset does not hold ``visual_nonzero``.
    """
    if "visual_nonzero" not in data:
        raise InputError(
            "Definition 'reflection-v' needs visual_nonzero(step, layer), which the dataset lacks; "
            "record it again or choose another definition."
        )
    total = np.nansum(segment_mass(data, visual), -1)
    count = data["visual_nonzero"].transpose("step", "layer").values
    mean = np.divide(total, count, out=np.zeros(total.shape), where=count > 0)
    return np.where(has_keys(data, visual)[:, None], mean, np.nan)


DEFINITION = Definition(
    name="reflection-v",
    description="Attention summed over heads, per visual key with non-zero weight.",
    formula="sum over heads of visual / number of visual keys with weight",
    source="Reflection-V (arXiv 2509.12132)",
    units="attention weight per key, summed over heads",
    long_name="head-summed attention weight of a visual key",
    step_owner="query",
    compute=reflection_v,
    per_head=False,
    counts_copied=False,
    whole="a trace counts keys with weight over all images together",
)
