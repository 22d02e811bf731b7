"""From recorded rows and tokens to the dataset of a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from attnlens.models.images import ImageInfo
from attnlens.recording.layout import InsertedKeys, KeyLayout
from attnlens.recording.mass import RecordedRows
from attnlens.recording.response import TokenStream, find_regions, region_of_steps
from attnlens.segments import SEGMENTS


@dataclass(frozen=True)
class Recording:
    """Everything that was recorded of a generated batch.

    ``rows`` is by layer; ``whole_prompt`` says whether every prompt row was asked for, or only
    those of the user's text; ``map_heads`` are the heads of ``visual_by_head``, by layer.
    """

    layout: KeyLayout
    rows: dict[int, RecordedRows]
    inserted: InsertedKeys = field(default_factory=InsertedKeys)
    whole_prompt: bool = True
    map_heads: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """One sequence of the batch.

    ``row`` is its row in the generated batch, ``prompt_row`` that of its prompt in the layout.
    ``prompt_texts`` of the prompt's tokens, and ``images``, are given
    where they are known.
    """

    row: int
    prompt_row: int
    stream: TokenStream
    prompt_texts: Sequence[str] | None = None
    images: Sequence[ImageInfo] = ()


def assemble(
    recording: Recording,
    one: Generated,
    texts: Callable[[Sequence[int]], list[str]],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Build the dataset of one generated sequence; ``texts`` gives the texts of token ids."""
    layout, rows, inserted = recording.layout, recording.rows, recording.inserted
    own_segments = layout.segments[one.prompt_row]
    layers = list(rows)
    first = rows[layers[0]]
    at_step = np.flatnonzero(first.positions >= layout.prompt_length - 1)
    at_step = at_step[: len(one.stream.predicted)]
    steps = first.positions[at_step]
    mass = np.stack([rows[i].mass[one.row] for i in layers], axis=1)  # rows, layers, heads, columns
    by_segment = _by_segment(mass, layout)
    predicted_texts = texts(one.stream.predicted.tolist())
    # the text of a query token is that of the step before, which keeps split characters together
    first_query = texts(one.stream.query[:1].tolist())
    query_texts = (first_query + predicted_texts)[: len(steps)]
    regions = region_of_steps(find_regions(predicted_texts), len(steps))
    nonzero = np.stack([rows[i].visual_nonzero[one.row] for i in layers], axis=1)  # steps, layers
    variables: dict[str, Any] = {
        "mass": (("step", "layer", "head", "segment"), by_segment[at_step]),
        "keys": (("step", "segment"), _key_counts(own_segments, steps, inserted)),
        "visual_nonzero": (("step", "layer"), nonzero[: len(steps)]),
    }
    coordinates: dict[str, Any] = {
        "step": steps - inserted.before(steps) - (layout.prompt_length - 1),
        "layer": layers,
        "head": np.arange(mass.shape[2]),
        "segment": list(SEGMENTS),
        "query_token": ("step", np.array(query_texts, dtype=str)),
        "predicted_token": ("step", np.array(predicted_texts, dtype=str)),
        "query_token_id": ("step", one.stream.query),
        "predicted_token_id": ("step", one.stream.predicted),
        "region": ("step", np.array(regions, dtype=str)),
    }
    hidden = [rows[i].hidden for i in layers]
    if any(of_layer is not None for of_layer in hidden):
        none = np.zeros(mass[:, 0].shape, np.int32)
        counts = np.stack([none if h is None else h[one.row] for h in hidden], axis=1)[at_step]
        if counts.any():
            variables["hidden"] = (
                ("step", "layer", "head", "segment"),
                _by_segment(counts, layout).astype(np.int32),
            )
    of_key = layout.image[one.prompt_row]
    images = [i for i in range(max(layout.column_image, default=-1) + 1) if (of_key == i).any()]
    if len(images) > 1:
        columns = [layout.column_image.index(i) for i in images]
        variables["mass_by_image"] = (
            ("step", "layer", "head", "image"),
            mass[at_step][..., columns],
        )
        coordinates["image"] = images
        coordinates["image_keys"] = ("image", [int((of_key == i).sum()) for i in images])
    visual = layout.visual_slots[one.prompt_row] >= 0
    if recording.map_heads or first.visual_weight is not None:
        coordinates |= _visual_places(of_key[own_segments == "visual"], images, one.images)
    if first.visual_weight is not None:
        weights = np.stack([rows[i].visual_weight[one.row] for i in layers], axis=1)  # type: ignore[index]
        variables["visual_map"] = (("step", "layer", "visual"), weights[: len(steps), :, visual])
    if recording.map_heads:
        of_heads = [rows[i].visual_by_head[one.row] for i in recording.map_heads]  # type: ignore[index]
        weights = np.concatenate(of_heads, axis=1)  # steps, mapped, visual
        variables["visual_map_by_head"] = (
            ("step", "mapped", "visual"),
            weights[: len(steps), :, visual],
        )
        mapped = [(layer, head) for layer, heads in recording.map_heads.items() for head in heads]
        for name, numbers in zip(("layer", "head"), zip(*mapped, strict=True), strict=True):
            coordinates[f"mapped_{name}"] = ("mapped", np.array(numbers, dtype=np.int64))
    own = own_segments != "padding"
    extra = np.flatnonzero(first.positions < layout.prompt_length)
    extra = extra[own[first.positions[extra]]]
    if not recording.whole_prompt:  # another prompt of the batch may have its text here
        extra = extra[own_segments[first.positions[extra]] == "query"]
    if len(extra) > 1:  # more than the last prompt row, which is step 0
        slots = first.positions[extra]
        variables["prompt_mass"] = (
            ("prompt_row", "layer", "head", "segment"),
            by_segment[extra],
        )
        padding = int((~own).sum())
        coordinates["prompt_row"] = slots - padding
        coordinates["prompt_segment"] = ("prompt_row", own_segments[slots])
        if one.prompt_texts is not None:
            prompt_texts = [one.prompt_texts[s - padding] for s in slots]
            coordinates["prompt_token"] = ("prompt_row", np.array(prompt_texts, dtype=str))
    data = xr.Dataset(variables, coordinates, attrs)
    for name, long_name in (
        ("mass", "fraction of attention mass, per layer and head, at one step"),
        ("keys", "number of keys at one step"),
        ("hidden", "number of keys hidden from a head at one step"),
    ):
        if name in data:
            data[name].attrs = {"long_name": long_name, "units": "1"}
    return data


def _by_segment(of_columns: np.ndarray, layout: KeyLayout) -> np.ndarray:
    """Add up the columns of each segment, on the last axis."""
    return np.stack(
        [of_columns[..., [n == s for n in layout.names]].sum(-1) for s in SEGMENTS], axis=-1
    )


def _key_counts(
    prompt_segments: np.ndarray, slots: np.ndarray, inserted: InsertedKeys
) -> np.ndarray:
    """Count the keys [steps, segments] up to each step's own, hidden ones included."""
    counts = [int((prompt_segments == s).sum()) for s in SEGMENTS]
    table = np.tile(np.array(counts, dtype=np.int32), (len(slots), 1))
    copied = inserted.before(slots, "copied")
    table[:, SEGMENTS.index("copied")] = copied
    table[:, SEGMENTS.index("response")] = slots - copied - (len(prompt_segments) - 1)
    return table


def _visual_places(
    image: np.ndarray, images: list[int], infos: Sequence[ImageInfo]
) -> dict[str, Any]:
    """Image, tile, row and column of each visual token; -1 where the grid is not known."""
    places = np.full((3, len(image)), -1)
    for number, index in enumerate(images):
        here = image == index
        if number < len(infos) and int(here.sum()) == infos[number].places().shape[1]:
            places[:, here] = infos[number].places()
    return {
        "visual_image": ("visual", image),
        "visual_tile": ("visual", places[0]),
        "visual_row": ("visual", places[1]),
        "visual_column": ("visual", places[2]),
    }
