"""Which moment of a video each step of a generation attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import TraceLike, dataset_of, select_layers, visual_map_of
from attnlens.measures.share import step_labels


def frame_shares(
    trace: TraceLike,
    item: int | None = None,
    *,
    layers: int | Sequence[int] | None = None,
) -> xr.DataArray:
    """Measure attention to each moment of a video, step by step.

    A moment is what one grid of visual tokens shows: in Qwen's models a pair of frames.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        What was recorded, with ``visual_map=True``.
    item : int or None
        Which image or video of the prompt, counted from 0; None for the only video.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.

    Returns
    -------
    xarray.DataArray, float64, (step, frame)
        Fraction of attention mass on the visual tokens of each moment, mean over heads and layers.
        Over all moments it adds up to the definition ``mass``. Coordinates along ``step`` as in
        ``visual_share``; along ``frame``: ``frame``, the number of the moment, and ``seconds`` and
        ``seconds_end``, when its first and its last frame are shown.

    Raises
    ------
    InputError
        If the trace has no visual map, the item is no video or is not there, or there are several
        videos and none is named.
    """
    data = select_layers(dataset_of(trace), layers)
    number, record = video_of(data, item)
    mine = visual_map_of(data).isel(visual=data["visual_image"].values == number)
    tiles = mine["visual_tile"].values
    count = int(tiles.max(initial=-1)) + 1
    if count != len(grids_of(record)) or tiles.min() < 0:
        raise InputError("the trace does not know the places of the video's visual tokens")
    mass = mine.transpose("step", "visual", "layer").values.mean(-1, dtype=np.float64)
    seconds = moments(record)
    chosen = get_definition("mass")
    return xr.DataArray(
        np.stack([mass[:, tiles == i].sum(-1) for i in range(count)], axis=1),
        step_labels(data, chosen)
        | {
            "frame": np.arange(count),
            "seconds": ("frame", seconds[:, 0]),
            "seconds_end": ("frame", seconds[:, 1]),
        },
        ("step", "frame"),
        "frame_shares",
        {
            "long_name": "fraction of attention mass, per pair of frames",
            "units": "1",
            "step_owner": chosen.step_owner,
            "item": str(number),
        },
    )


def video_of(data: xr.Dataset, item: int | None) -> tuple[int, dict[str, Any]]:
    """Return the number of a video of the prompt, and what the trace knows of it.

    Raises
    ------
    InputError
        If it is no video or is not there, or there are several and none is named.
    """
    noted = data.attrs.get("images", [])
    videos = [i for i, image in enumerate(noted) if image.get("frames")]
    if not videos:
        raise InputError("the trace has no video: record a prompt made with vlm.prompt(video=...)")
    if item is None and len(videos) > 1:
        raise InputError(f"the prompt has {len(videos)} videos: give item, one of {videos}")
    number = videos[0] if item is None else item
    if isinstance(number, bool) or number not in videos:
        raise InputError(f"item={item!r} is no video: give one of {videos}")
    return int(number), noted[int(number)]


def grids_of(record: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the places among the shown frames of the first and the last frame of each grid."""
    shown, length = len(record["frames"]["seconds"]), int(record["frames"]["length"])
    return [(i, min(i + length, shown) - 1) for i in range(0, shown, length)]


def moments(record: dict[str, Any]) -> np.ndarray:
    """Return when the first and the last frame of each grid are shown, float64 [grids, 2]."""
    seconds = np.asarray(record["frames"]["seconds"], dtype=np.float64)
    return seconds[np.array(grids_of(record))]
