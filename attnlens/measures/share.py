"""How much each step of a generation attends to the image, under a named definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import DEFINITIONS, Definition, get_definition
from attnlens.measures.definitions.base import has_keys
from attnlens.measures.inputs import (
    TraceLike,
    dataset_of,
    keys_by_image,
    one_image,
    owned_token,
    select_layers,
)
from attnlens.measures.recovery import mean_of_known

_ALONG_STEPS = (
    "step",
    "query_token",
    "query_token_id",
    "predicted_token",
    "predicted_token_id",
    "region",
)


def visual_share(
    trace: TraceLike,
    definition: str = "mass",
    *,
    layers: int | Sequence[int] | None = None,
    reduction: str = "mean",
    include_copied: bool = False,
    item: int | None = None,
) -> xr.DataArray:
    """Measure attention to the image, step by step.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded.
    definition : str
        One of ``attnlens.measures.definitions``. Each is documented, with its formula and
        source, in its own module in ``attnlens.measures.definitions``.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    reduction : {"mean", "layer", "none"}
        ``"mean"``: mean over heads, then over layers; ``"layer"``: one value per layer;
        ``"none"``: one value per layer and head. Values that are undefined (a head with all its
        mass on the sink under ``no-sink``) are left out of a mean.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    item : int or None
        Which image or video of the prompt, counted from 0; None counts several together. The others
        stay in the denominator.

    Returns
    -------
    xarray.DataArray, float64
        (step,), (step, layer) or (step, layer, head), in the units of the definition. Coordinates
        along ``step``: those of the trace; ``token``, the text of the token that owns the step;
        and ``region``, the region of that token (``""`` for a token of the prompt). Attributes:
        ``definition``, ``formula``, ``source``, ``units``, ``step_owner``, ``long_name``,
        ``reduction``, ``include_copied``, and ``item`` where one was chosen. ``look-back`` has no
        step 0; ``lookback-ratio`` is NaN there.

    Raises
    ------
    InputError
        If the trace has no visual keys, the definition or reduction is unknown, the definition
        reduces heads itself and `reduction` is ``"none"``, a layer was not recorded, copied tokens
        cannot be counted, there is no such item, or the definition cannot tell images apart.
    """
    chosen = get_definition(definition)
    _check_reduction(chosen, reduction)
    data = select_layers(dataset_of(trace), layers)
    if item is not None:
        data = one_image(data, item)
        if chosen.whole and len(keys_by_image(data)) > 1:
            raise InputError(
                f"Definition {definition!r} cannot measure one image of several: {chosen.whole}; "
                "choose another definition, or leave item out."
            )
    visual = visual_segments(chosen, data, include_copied)
    share = _labelled(_reduce(chosen.compute(data, visual), reduction), data, chosen)
    share.attrs = _attributes(chosen, chosen.long_name, chosen.formula, reduction, include_copied)
    if item is not None:
        share.attrs["item"] = str(item)
    return share.rename(definition)


def shares(
    trace: TraceLike,
    definition: str = "look-back",
    *,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    items: bool = False,
) -> xr.DataArray:
    """Measure attention to the image, the query text and the generated text, step by step.

    The three curves have one denominator. They need not add up to one: in ``look-back`` the
    vision-end token is in the denominator and in no curve, and so are copied visual tokens unless
    `include_copied` adds them to the image.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded.
    definition : {"look-back", "mass", "no-sink", "mean-weight"}
        The definitions with a counterpart for text. Under ``mean-weight`` each curve is divided by
        its own number of keys and is NaN where it has none.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as image.
    items : bool
        Whether each image and video of the prompt has a curve of its own.

    Returns
    -------
    xarray.DataArray, float64, (step, curve)
        Curves ``"image"`` (with `items`, ``"image 0"``, ``"video 1"`` and so on), ``"query"`` and
        ``"generated"``, reduced over heads and layers as the
        definition says; coordinates and attributes as in ``visual_share``.

    Raises
    ------
    InputError
        If the definition speaks of the image alone, copied tokens are to be counted by item, and
        as in ``visual_share``.
    """
    chosen = get_definition(definition)
    if not chosen.has_curves:
        usable = ", ".join(name for name, entry in DEFINITIONS.items() if entry.has_curves)
        raise InputError(
            f"Definition {definition!r} has no counterpart for query and generated text; "
            f"definitions with three curves: {usable}."
        )
    data = select_layers(dataset_of(trace), layers)
    visual = visual_segments(chosen, data, include_copied)
    if items and include_copied:
        raise InputError("copied tokens are not counted by item: use include_copied=False")
    named = item_names(data) if items else {}
    parts = {name: (one_image(data, item), visual) for item, name in named.items()} or {
        "image": (data, visual)
    }
    parts |= {"query": (data, ("query",)), "generated": (data, ("response",))}
    curves = [_reduce(chosen.compute(part, names), "mean") for part, names in parts.values()]
    stacked = _labelled(np.stack(curves, axis=1), data, chosen, curve=list(parts))
    stacked.attrs = _attributes(
        chosen, chosen.curves_name, chosen.curves_formula, "mean", include_copied
    )
    return stacked.rename(definition)


def item_names(data: xr.Dataset) -> dict[int, str]:
    """Name each image and video of the prompt, such as ``image 0``, by its number."""
    noted = data.attrs.get("images", [])
    videos = {i for i, image in enumerate(noted) if image.get("frames")}
    return {i: f"{'video' if i in videos else 'image'} {i}" for i in keys_by_image(data)}


def visual_segments(chosen: Definition, data: xr.Dataset, include_copied: bool) -> tuple[str, ...]:
    """Return the segments that count as visual.

    Raises
    ------
    InputError
        If there are no such keys, or the definition cannot count copied tokens.
    """
    if include_copied and not chosen.counts_copied:
        raise InputError(
            f"Definition {chosen.name!r} cannot count copied visual tokens; "
            "use include_copied=False or another definition."
        )
    visual = ("visual", "copied") if include_copied else ("visual",)
    if not has_keys(data, visual).any():
        raise InputError(
            "The trace has no visual keys, so attention to the image cannot be measured; "
            "record a prompt with an image."
        )
    return visual


def _check_reduction(chosen: Definition, reduction: str) -> None:
    allowed = ("mean", "layer", "none") if chosen.per_head else ("mean", "layer")
    if reduction not in allowed:
        raise InputError(
            f"Reduction {reduction!r} is not available for definition {chosen.name!r}; "
            f"available: {', '.join(allowed)}."
        )


def _reduce(values: np.ndarray, reduction: str) -> np.ndarray:
    """Average over heads, which a definition may have done, and layers."""
    least = {"none": 3, "layer": 2, "mean": 1}[reduction]
    while values.ndim > least:
        values = mean_of_known(values)
    return values


def _labelled(
    values: np.ndarray, data: xr.Dataset, chosen: Definition, **last: list[str]
) -> xr.DataArray:
    """Label an array (step, ...) of the last steps of a trace; ``last`` names a second axis."""
    axes = (*last,) or ("layer", "head")[: values.ndim - 1]
    coordinates = step_labels(data, chosen, data.sizes["step"] - len(values)) | last
    coordinates |= {axis: data[axis].values for axis in axes if axis not in last}
    return xr.DataArray(values, coordinates, ("step", *axes))


def step_labels(data: xr.Dataset, chosen: Definition, skipped: int = 0) -> dict[str, Any]:
    """Return the labels of a trace's steps after the first few, and the owner's token and region.

    ``region`` is that of the owner.
    """
    labels: dict[str, Any] = {
        name: ("step", data[name].values[skipped:])
        for name in _ALONG_STEPS
        if name in data.coords and data[name].dims == ("step",)
    }
    owner = f"{chosen.step_owner}_token"
    if owner in labels:
        labels["token"] = labels[owner]
    if "region" in labels:
        # The coordinate of a trace names the region of the predicted token, whose index is step.
        by_token = dict(zip(data["step"].values.tolist(), data["region"].values, strict=True))
        tokens = owned_token(labels["step"][1], chosen.step_owner).tolist()
        labels["region"] = ("step", np.array([str(by_token.get(t, "")) for t in tokens], dtype=str))
    return labels


def _attributes(
    chosen: Definition, long_name: str, formula: str, reduction: str, include_copied: bool
) -> dict[str, str]:
    return {
        "definition": chosen.name,
        "formula": formula,
        "source": chosen.source,
        "units": chosen.units,
        "step_owner": chosen.step_owner,
        "long_name": long_name,
        "reduction": reduction,
        "include_copied": "yes" if include_copied else "no",
    }
