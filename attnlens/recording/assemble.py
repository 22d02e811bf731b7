"""From recorded rows and token ids to the dataset of a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from attnlens.recording.layout import InsertedKeys, KeyLayout
from attnlens.recording.mass import RecordedRows
from attnlens.recording.response import TokenStream, find_regions, region_of_steps
from attnlens.segments import SEGMENTS


def assemble(
    row: int,
    layout: KeyLayout,
    prompt_row: int,
    rows: dict[int, RecordedRows],
    stream: TokenStream,
    texts: Callable[[Sequence[int]], list[str]],
    prompt_texts: Sequence[str] | None,
    grids: Sequence[tuple[int, int]],
    attrs: dict[str, Any],
    *,
    whole_prompt: bool = True,
    inserted: InsertedKeys | None = None,
) -> xr.Dataset:
    """Build the dataset of one generation.

    Parameters
    ----------
    row
        Its row in the generated batch.
    layout, prompt_row
        The keys' layout, and the row of the prompt in it.
    rows
        What was recorded, by layer.
    stream
        The steps' tokens.
    texts
        Texts of a sequence of token ids.
    prompt_texts
        Texts of the prompt's tokens, where they are known.
    grids
        (rows, columns) of each image of the prompt; empty where they are not known.
    attrs
        Where the trace comes from.
    whole_prompt
        Whether every prompt row was asked for, or those of the user's text alone.
    inserted
        Keys that were inserted during the generation.
    """
    inserted = inserted or InsertedKeys()
    layers = list(rows)
    first = rows[layers[0]]
    is_step = first.positions >= layout.prompt_length - 1
    steps = first.positions[is_step][: len(stream.predicted)]
    mass = np.stack([rows[i].mass[row] for i in layers], axis=1)  # rows, layers, heads, columns
    by_segment = _by_segment(mass, layout)
    at_step = np.flatnonzero(is_step)[: len(steps)]
    predicted_texts = texts(stream.predicted.tolist())
    # the text of a query token is that of the step before, which keeps split characters together
    first_query = texts(stream.query[:1].tolist())
    query_texts = (first_query + predicted_texts)[: len(steps)]
    regions = region_of_steps(find_regions(predicted_texts), len(steps))
    nonzero = np.stack([rows[i].visual_nonzero[row] for i in layers], axis=1)  # steps, layers
    variables: dict[str, Any] = {
        "mass": (("step", "layer", "head", "segment"), by_segment[at_step]),
        "keys": (("step", "segment"), _key_counts(layout, prompt_row, steps, inserted)),
        "visual_nonzero": (("step", "layer"), nonzero[: len(steps)]),
    }
    hidden = [rows[i].hidden for i in layers]
    if any(of_layer is not None for of_layer in hidden):
        none = np.zeros(mass[:, 0].shape, np.int32)
        counts = np.stack([none if h is None else h[row] for h in hidden], axis=1)[at_step]
        if counts.any():
            variables["hidden"] = (
                ("step", "layer", "head", "segment"),
                _by_segment(counts, layout).astype(np.int32),
            )
    coordinates: dict[str, Any] = {
        "step": steps - inserted.before(steps) - (layout.prompt_length - 1),
        "layer": layers,
        "head": np.arange(mass.shape[2]),
        "segment": list(SEGMENTS),
        "query_token": ("step", np.array(query_texts, dtype=str)),
        "predicted_token": ("step", np.array(predicted_texts, dtype=str)),
        "query_token_id": ("step", stream.query),
        "predicted_token_id": ("step", stream.predicted),
        "region": ("step", np.array(regions, dtype=str)),
    }
    images = [
        i
        for i in range(max(layout.column_image, default=-1) + 1)
        if (layout.image[prompt_row] == i).any()
    ]
    if len(images) > 1:
        columns = [layout.column_image.index(i) for i in images]
        variables["mass_by_image"] = (
            ("step", "layer", "head", "image"),
            mass[at_step][..., columns],
        )
        coordinates["image"] = images
    if first.visual_weight is not None:
        visual = layout.visual_slots[prompt_row] >= 0
        weights = np.stack([rows[i].visual_weight[row] for i in layers], axis=1)  # type: ignore[index]
        variables["visual_map"] = (("step", "layer", "visual"), weights[: len(steps), :, visual])
        coordinates.update(_visual_places(layout, prompt_row, images, grids))
    own = layout.segments[prompt_row] != "padding"
    extra = np.flatnonzero(first.positions < layout.prompt_length)
    extra = extra[own[first.positions[extra]]]
    if not whole_prompt:  # another prompt of the batch may have its text where this one has not
        extra = extra[layout.segments[prompt_row][first.positions[extra]] == "query"]
    if len(extra) > 1:  # more than the last prompt row, which is step 0
        slots = first.positions[extra]
        variables["prompt_mass"] = (
            ("prompt_row", "layer", "head", "segment"),
            by_segment[extra],
        )
        padding = int((~own).sum())
        coordinates["prompt_row"] = slots - padding
        coordinates["prompt_segment"] = ("prompt_row", layout.segments[prompt_row][slots])
        if prompt_texts is not None:
            coordinates["prompt_token"] = (
                "prompt_row",
                np.array([prompt_texts[s - padding] for s in slots], dtype=str),
            )
    data = xr.Dataset(variables, coordinates)
    data["mass"].attrs = {
        "long_name": "fraction of attention mass, per layer and head, at one step",
        "units": "1",
    }
    data["keys"].attrs = {"long_name": "number of keys at one step", "units": "1"}
    if "hidden" in data:
        data["hidden"].attrs = {
            "long_name": "number of keys hidden from a head at one step",
            "units": "1",
        }
    data.attrs = attrs
    return data


def _by_segment(of_columns: np.ndarray, layout: KeyLayout) -> np.ndarray:
    """Add up the columns of each segment, on the last axis."""
    return np.stack(
        [of_columns[..., [n == s for n in layout.names]].sum(-1) for s in SEGMENTS], axis=-1
    )


def _key_counts(
    layout: KeyLayout, prompt_row: int, positions: np.ndarray, inserted: InsertedKeys
) -> np.ndarray:
    """Count the keys [steps, segments] up to each step's own, hidden ones included."""
    counts = [int((layout.segments[prompt_row] == s).sum()) for s in SEGMENTS]
    table = np.tile(np.array(counts, dtype=np.int32), (len(positions), 1))
    copied = inserted.before(positions, "copied")
    table[:, SEGMENTS.index("copied")] = copied
    table[:, SEGMENTS.index("response")] = positions - copied - (layout.prompt_length - 1)
    return table


def _visual_places(
    layout: KeyLayout, prompt_row: int, images: list[int], grids: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Image, row and column of each visual token; -1 where the grid is not known."""
    of_key = layout.image[prompt_row]
    image = of_key[layout.segments[prompt_row] == "visual"]
    row = np.full(len(image), -1)
    column = np.full(len(image), -1)
    for number, index in enumerate(images):
        here = image == index
        if number < len(grids) and int(here.sum()) == grids[number][0] * grids[number][1]:
            row[here], column[here] = np.divmod(np.arange(int(here.sum())), grids[number][1])
    return {
        "visual_image": ("visual", image),
        "visual_row": ("visual", row),
        "visual_column": ("visual", column),
    }
