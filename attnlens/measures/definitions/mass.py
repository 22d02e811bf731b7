"""Attention mass on the image, as the softmax gives it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.measures.definitions.base import Definition, Segments, segment_mass


def mass(data: xr.Dataset, visual: Segments) -> np.ndarray:
    """Sum one attention row over the visual keys.

    Formula: ``sum over j in V of A[t, l, h, j]`` with V the visual keys and A the softmax row of
    step t in layer l and head h.

    - Source: the softmax itself.
    - Step owner: the predicted token.
    - Denominator: all visible keys, whose weights add up to one.
    - Keys: sum.
    - Reduction: mean over heads, then mean over layers (for a sum over keys the order is
      irrelevant).

    Parameters
    ----------
    data : xarray.Dataset
        Dataset of a trace.
    visual : tuple of str
        Segments that count as visual.

    Returns
    -------
    numpy.ndarray, float64, (step, layer, head)
        Fraction of attention mass, per layer and head, at one step.
    """
    return segment_mass(data, visual)


DEFINITION = Definition(
    name="mass",
    description="Sum of the attention weights on the visual keys.",
    formula="sum of attention weights on visual keys",
    curves_formula="sum of attention weights; image: on visual keys, query text: on query keys, "
    "generated text: on response keys",
    source="softmax attention",
    units="fraction of attention mass",
    long_name="attention mass on the image",
    step_owner="predicted",
    compute=mass,
)
