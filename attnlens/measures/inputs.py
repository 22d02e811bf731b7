"""What a measure reads of a trace: its dataset, its regions, and which steps a region covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.segments import SEGMENTS


class RegionLike(Protocol):
    """A half-open span of steps whose predicted tokens form one region, tags included."""

    @property
    def name(self) -> str:
        """Name of the region, such as ``"back"``."""

    @property
    def start(self) -> int:
        """Step that predicts the first token of the region."""

    @property
    def stop(self) -> int:
        """Step after the one that predicts the last token of the region."""

    @property
    def closed(self) -> bool:
        """Whether the closing tag was generated."""


class HasData(Protocol):
    """What a measure uses of an ``attnlens.Trace``."""

    @property
    def data(self) -> xr.Dataset:
        """The recorded variables."""

    @property
    def regions(self) -> Sequence[Any]:
        """The regions of the response, in order."""


TraceLike = HasData | xr.Dataset
"""A trace, or the dataset of one."""


@dataclass(frozen=True)
class Span:
    """A region that was derived from the ``region`` coordinate of a bare dataset."""

    name: str
    start: int
    stop: int
    closed: bool


def dataset_of(trace: TraceLike) -> xr.Dataset:
    """Return the dataset of a trace, checked for what every measure needs.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        Needs ``mass`` (step, layer, head, segment) and ``keys`` (step, segment).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    InputError
        If `trace` is something else, or a variable, an axis or a segment is missing.
    """
    data = trace if isinstance(trace, xr.Dataset) else getattr(trace, "data", None)
    if not isinstance(data, xr.Dataset):
        raise InputError(
            f"A {type(trace).__name__} is not a trace; give an attnlens.Trace or its dataset."
        )
    axes = {"mass": ("step", "layer", "head", "segment"), "keys": ("step", "segment")}
    for name, dims in axes.items():
        if name not in data or set(data[name].dims) != set(dims):
            raise InputError(
                f"The dataset with variables {sorted(map(str, data.data_vars))} is not a trace: "
                f"it needs {name}({', '.join(dims)})."
            )
    for name in axes["mass"]:
        if name not in data.coords:
            raise InputError(f"The dataset is not a trace: it needs labels along its {name} axis.")
    if (np.diff(data["step"].values) <= 0).any():
        raise InputError("The dataset is not a trace: its steps are not in order.")
    segments = data["segment"].values.tolist()
    missing = [name for name in SEGMENTS if name not in segments]
    if missing:
        raise InputError(
            f"The segment axis {segments} lacks {', '.join(missing)}; "
            f"a trace has {', '.join(SEGMENTS)}."
        )
    return data


def visible_keys(data: xr.Dataset) -> xr.DataArray:
    """Count the keys that a step sees in each segment.

    Returns
    -------
    xarray.DataArray, float64, (step, segment) or (step, layer, head, segment)
        ``keys``, less ``hidden`` where a mask hid some: a ``Knockout``, or a mask of the user's.

    Raises
    ------
    InputError
        If the trace was saved under a knock-out before hidden keys were counted.
    """
    if data.attrs.get("hidden_keys_counted") is False:
        raise InputError(
            "The trace was made under a knock-out by an attnlens that did not count the keys it "
            "hides, so no measure that needs key counts can be had of it; make it anew, or use "
            "mass, no-sink or look-back."
        )
    if data.attrs.get("hidden_counted_by_image") is False:
        raise InputError(
            "Keys were hidden in this trace and not counted by image, so no measure that needs key "
            "counts can be had of one image; use mass, no-sink or look-back."
        )
    keys = data["keys"].astype(np.float64)
    if "hidden" not in data:
        return keys
    seen = (keys - data["hidden"]).transpose("step", "layer", "head", "segment")
    return seen.rename("keys")


def visual_key_share(data: xr.Dataset) -> xr.DataArray:
    """Return the fraction of visible keys that is visual, at every step.

    Returns
    -------
    xarray.DataArray, float64, (step,)
        r of Qwen-LookAgain (arXiv 2505.23558), mean over layers and heads where keys were hidden
        from some. Inserted tokens do not count as visual.
    """
    keys = visible_keys(data)
    return over_heads(keys.sel(segment="visual") / keys.sum("segment"))


def over_heads(counts: xr.DataArray) -> xr.DataArray:
    """Average key counts, or their ratios, over layers and heads where they differ."""
    return counts.mean([axis for axis in ("layer", "head") if axis in counts.dims])


def runs_of(traces: TraceLike | Iterable[TraceLike]) -> Iterable[TraceLike]:
    """Return an iterable of runs, where one run or several are given.

    Raises
    ------
    InputError
        If `traces` is none of these.
    """
    if isinstance(traces, xr.Dataset) or hasattr(traces, "data"):
        return [traces]  # type: ignore[list-item]
    if not isinstance(traces, Iterable):
        raise InputError(
            f"{traces!r} was given: give traces, as in [attnlens.Trace.load(...), ...]"
        )
    return traces


def select_layers(data: xr.Dataset, layers: int | Sequence[int] | None) -> xr.Dataset:
    """Keep some of the recorded layers, by their indices in the model; None keeps all.

    The ``layer`` axis is kept even for a single layer.

    Raises
    ------
    InputError
        If no layer is asked for or one was not recorded.
    """
    if layers is None:
        return data
    wanted = [layers] if isinstance(layers, (int, np.integer)) else list(layers)
    recorded = data["layer"].values.tolist()
    if not wanted or any(layer not in recorded for layer in wanted):
        raise InputError(f"Layers {wanted} cannot be selected; the trace holds layers {recorded}.")
    return data.sel(layer=wanted)


def one_image(data: xr.Dataset, item: int) -> xr.Dataset:
    """Keep one image or video as ``visual``; what the others get counts as ``vision_end``.

    So it stays in every denominator, and is in no numerator. ``visual_nonzero`` is of all images
    together, and is dropped.

    Raises
    ------
    InputError
        If there is no such image.
    """
    counts = keys_by_image(data)
    whole = isinstance(item, int | np.integer) and not isinstance(item, bool)
    if not whole or item not in counts:
        raise InputError(f"item={item!r}: the trace has {len(counts)} images, counted from 0")
    if len(counts) == 1:
        return data
    mass, keys = data["mass"].copy(deep=True), data["keys"].copy(deep=True)
    own = data["mass_by_image"].sel(image=item, drop=True).transpose(*mass.isel(segment=0).dims)
    visual = {"segment": "visual"}
    others = mass.sel(visual, drop=True) - own
    mass.loc[visual] = own
    mass.loc[{"segment": "vision_end"}] += others
    keys.loc[visual] = counts[item]
    keys.loc[{"segment": "vision_end"}] += sum(counts.values()) - counts[item]
    kept = data.drop_vars("visual_nonzero", errors="ignore").assign(mass=mass, keys=keys)
    return kept.assign_attrs(hidden_counted_by_image=False) if "hidden" in data else kept


def visual_map_of(data: xr.Dataset) -> xr.DataArray:
    """Return the weight of each visual token, by step and layer.

    Raises
    ------
    InputError
        If it was not recorded.
    """
    if "visual_map" not in data:
        raise InputError("the trace has no visual map: record with visual_map=True")
    return data["visual_map"]


def keys_by_image(data: xr.Dataset) -> dict[int, int]:
    """Count the visual keys of each image or video of the prompt, by its number.

    Raises
    ------
    InputError
        If the trace does not know it.
    """
    if "image_keys" in data.coords:
        numbers, counts = data["image"].values.tolist(), data["image_keys"].values.tolist()
        return dict(zip(numbers, counts, strict=True))
    noted = data.attrs.get("images", [])
    if len(noted) > 1:  # a trace that was saved before these were counted
        return {i: int(image["rows"]) * int(image["columns"]) for i, image in enumerate(noted)}
    if "mass_by_image" in data:
        raise InputError(
            "The trace was saved before keys were counted by image; record it again to measure one "
            "image of several."
        )
    count = int(data["keys"].sel(segment="visual").values[0])
    return {0: count} if count else {}


def regions_of(trace: TraceLike) -> list[RegionLike]:
    r"""Return the regions of a trace in order of their start.

    A bare dataset has no list of regions, only the innermost region of each predicted token. Its
    regions are the runs of equal names, so two regions of one name that touch count as one, and
    a region that holds another is split by it. It is closed if its text has the closing tag, or is
    a ``\boxed{...}`` with its last brace.

    Returns
    -------
    list of regions
        Objects with ``name``, ``start``, ``stop`` (half-open span of predicted tokens, in steps)
        and ``closed``.
    """
    if not isinstance(trace, xr.Dataset):
        return sorted(trace.regions, key=lambda region: (region.start, -region.stop))
    data = dataset_of(trace)
    if "region" not in data.coords:
        return []
    names = [str(name) for name in data["region"].values]
    steps = [int(step) for step in data["step"].values]
    tokens = [str(token) for token in data["predicted_token"].values]
    spans: list[RegionLike] = []
    first = 0
    for i in range(1, len(names) + 1):
        if i < len(names) and names[i] == names[first] and steps[i] == steps[i - 1] + 1:
            continue
        if names[first]:
            text = "".join(tokens[first:i]).lower()
            boxed = "\\boxed" in text and text.rstrip().endswith("}")
            closed = boxed or f"</{names[first].lower()}>" in text
            spans.append(Span(names[first], steps[first], steps[i - 1] + 1, closed))
        first = i
    return spans


def find_region(trace: TraceLike, name: str, occurrence: int = 1) -> RegionLike:
    """Return one occurrence of a region: 1 is the first of that name.

    Raises
    ------
    InputError
        If the trace has no such region; the message names those it has.
    """
    regions = regions_of(trace)
    found = [region for region in regions if region.name == name]
    if not 1 <= occurrence <= len(found):
        counts: dict[str, int] = {}
        for region in regions:
            counts[region.name] = counts.get(region.name, 0) + 1
        there = ", ".join(f"{key!r} ({count})" for key, count in counts.items()) or "none"
        raise InputError(
            f"Region {name!r}, occurrence {occurrence}, is not in the trace; "
            f"its regions and how often they occur: {there}."
        )
    return found[occurrence - 1]


def inside(share: xr.DataArray, region: RegionLike) -> np.ndarray:
    """Tell which steps of a share belong to a region.

    Regions are spans of response tokens. Where a definition labels steps by the predicted token,
    the region covers the steps that predict its tokens, ``start <= step < stop``. Where it labels
    them by the query token, the region covers the steps at which its tokens are fed in, one later,
    ``start <= step - 1 < stop``. The last response token is never fed in, so a region that ends
    with the response has one step fewer there. ``share`` has a ``step`` axis and the attribute
    ``step_owner``.

    Returns
    -------
    numpy.ndarray of bool, shape (steps,)
    """
    token = owned_token(share["step"].values, share.attrs["step_owner"])
    return np.asarray((token >= region.start) & (token < region.stop))


def owned_token(steps: np.ndarray, step_owner: str) -> np.ndarray:
    """Return the index of the response token that owns each step, -1 for the last prompt token.

    Step t predicts response token t; its query token is response token t - 1.
    """
    return np.asarray(steps) - (1 if step_owner == "query" else 0)
