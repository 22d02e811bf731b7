"""What a definition of visual attention states, and the arithmetic that several share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from attnlens.measures.inputs import visible_keys

Segments = tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """One way to say how much a step attends to the image.

    Parameters
    ----------
    name : str
        Name in the registry.
    description : str
        One line for lists of definitions.
    formula : str
        Short formula for figure captions, in words of ``attnlens.segments.SEGMENTS``.
    source : str
        Where the definition comes from.
    units : str
        Units of the values.
    long_name : str
        Axis label of attention to the image.
    step_owner : {"predicted", "query"}
        The token that a step stands for: the one it predicts or the one it is fed.
    compute : callable
        ``compute(data, visual)`` with the dataset of a trace and the segments that count as
        visual; returns a float64 array (step, layer, head), or (step, layer) if the definition
        reduces heads itself. First steps for which it has no value may be left out.
    per_head : bool
        Whether `compute` keeps the head axis.
    counts_copied : bool
        Whether copied visual tokens can be counted as visual.
    whole : str
        Why one image of several cannot be measured by itself; empty where it can.
    first_step : int
        First step that has a value.
    curves_name : str
        Axis label of curves for the image, the query text and the generated text together.
    curves_formula : str
        Formulas of these three curves, like `formula`; empty where `compute` makes no sense for
        text in the place of the visual segments.
    """

    name: str
    description: str
    formula: str
    source: str
    units: str
    long_name: str
    step_owner: str
    compute: Callable[[xr.Dataset, Segments], np.ndarray]
    per_head: bool = True
    counts_copied: bool = True
    whole: str = ""
    first_step: int = 0
    curves_name: str = "share of attention"
    curves_formula: str = ""

    @property
    def has_curves(self) -> bool:
        """Whether there are curves for the query text and the generated text, too."""
        return bool(self.curves_formula)


def segment_mass(data: xr.Dataset, segments: Sequence[str]) -> np.ndarray:
    """Add the mass of several segments.

    Returns
    -------
    numpy.ndarray, float64, (step, layer, head)
        Fraction of attention mass, per layer and head, at one step.
    """
    mass = data["mass"].transpose("step", "layer", "head", "segment").values
    return mass[..., _chosen(data, segments)].astype(np.float64).sum(-1)


def segment_keys(data: xr.Dataset, segments: Sequence[str]) -> np.ndarray:
    """Add the number of visible keys of several segments.

    Returns
    -------
    numpy.ndarray, float64, (step, 1, 1) or (step, layer, head)
        Number of keys, without those that are hidden from a head; NaN where there is none, so that
        a mean over no keys is undefined.
    """
    keys = visible_keys(data).transpose(..., "segment").values
    counts = keys[..., _chosen(data, segments)].sum(-1)
    counts = counts if counts.ndim == 3 else counts[:, None, None]
    return np.where(counts > 0, counts, np.nan)


def has_keys(data: xr.Dataset, segments: Sequence[str]) -> np.ndarray:
    """Tell at each step whether there is any key of these segments, hidden ones included.

    Returns
    -------
    numpy.ndarray, bool, (step,)
    """
    keys = data["keys"].transpose("step", "segment").values
    return keys[:, _chosen(data, segments)].max(-1, initial=0) > 0


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Divide, without a warning where nothing is divided by nothing: NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return over / under


def _chosen(data: xr.Dataset, segments: Sequence[str]) -> list[int]:
    """Find the places of some segments along the segment axis, each once."""
    names = data["segment"].values.tolist()
    return [names.index(segment) for segment in dict.fromkeys(segments)]
