"""The pictures of a run, small enough for a page, with the place of each visual token."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.explorer.packing import Packer
from attnlens.measures.frames import grids_of, moments
from attnlens.models.images import ImageInfo, Tile
from attnlens.models.recorded import recorded_frames, recorded_image

if TYPE_CHECKING:
    import xarray as xr
    from PIL import Image

LONGEST_SIDE = 1024
"""Of a picture in a page, in pixels."""
PNG_BYTES = 200_000
"""Up to this size, a picture is stored without loss."""


def pictures_of(
    data: xr.Dataset, images: Sequence[Any] | None, packer: Packer
) -> tuple[list[dict[str, Any]], list[str]]:
    """Collect the pictures of a run, and say what is missing.

    Parameters
    ----------
    data
        The dataset of a trace.
    images
        The images and videos of the prompt, in order, as ``vlm.prompt`` takes them; None for the
        files that were recorded.
    packer
        Packs the boxes.

    Returns
    -------
    pictures : list of dict
        One for each image, and for each grid of visual tokens of a video.
    lacks : list of str
        A sentence for each that is not there.

    Raises
    ------
    InputError
        If other than one is given for each image of the prompt, or one has another size.
    """
    records = data.attrs.get("images") or []
    if images is not None and len(images) != len(records):
        raise InputError(f"{len(images)} images were given: the prompt has {len(records)}")
    found: list[dict[str, Any]] = []
    lacks: list[str] = []
    following = 0
    if not records:
        lacks.append(
            "The pictures are not known: record a prompt that vlm.prompt made, not bare segments."
        )
    for number, record in enumerate(records):
        if not record.get("columns"):
            lacks.append(f"Where the visual tokens of image {number} are is not known.")
            continue
        given = None if images is None else images[number]
        views = _frames if record.get("frames") else _image
        try:
            shown = views(record, number, given)
        except InputError as error:
            if given is not None:
                raise
            lacks.append(f"A picture is missing: {error}.")
            shown = views(record, number, _PLACEHOLDER)
        owned = _owned(data, number)
        tokens = sum(len(boxes) for _, _, boxes, _ in shown)
        if owned is not None and len(owned) != tokens:
            lacks.append(f"Where the visual tokens of image {number} are is not known.")
            continue
        first = following if owned is None else int(owned[0])
        for label, picture, boxes, grid in shown:
            found.append(
                {
                    "item": number,
                    "label": label,
                    "width": record["width"],
                    "height": record["height"],
                    "source": None if picture is None else data_url(picture),
                    "first": first,
                    "count": len(boxes),
                    "rows": grid[0],
                    "columns": grid[1],
                    "boxes": packer.exact(boxes),
                }
            )
            first += len(boxes)
        following = first
    return found, lacks


_PLACEHOLDER = object()
"""Stands for a picture that is not there."""
_View = tuple[str, "Image.Image | None", np.ndarray, tuple[int, int]]


def _owned(data: xr.Dataset, number: int) -> np.ndarray | None:
    """Places of the visual tokens of an image in the trace's map; None without a map."""
    if "visual_image" not in data.coords:
        return None
    return np.flatnonzero(data["visual_image"].values == number)


def _image(record: dict[str, Any], number: int, given: Any) -> list[_View]:
    picture = (
        None if given is _PLACEHOLDER else recorded_image(record, number, given, option="images=")
    )
    tiles = [Tile(**tile) for tile in record.get("tiles", ())]
    plain = not tiles
    tiles = tiles or [Tile(record["rows"], record["columns"])]
    grid = (record["rows"], record["columns"]) if plain else (0, 0)
    return [(f"image {number}", picture, _boxes(record, tiles), grid)]


def _frames(record: dict[str, Any], number: int, given: Any) -> list[_View]:
    """One picture, the first frame, for each grid of visual tokens."""
    indices = record["frames"]["indices"]
    wanted = [indices[grid[0]] for grid in grids_of(record)]
    pictures: list[Any] = [None] * len(wanted)
    if given is not _PLACEHOLDER:
        pictures = recorded_frames(record, number, wanted, given, option="images=")
    tiles = [Tile(**tile) for tile in record["tiles"]]
    found = []
    for tile, picture, (start, _) in zip(tiles, pictures, moments(record), strict=True):
        grid = (0, 0) if tile.newlines else (tile.rows, tile.columns)
        label = f"video {number}, {start:.1f} s"
        found.append((label, picture, _boxes(record, [tile]), grid))
    return found


def _boxes(record: dict[str, Any], tiles: Sequence[Tile]) -> np.ndarray:
    """Box of each visual token as fractions of the picture, float [visual tokens, 4]."""
    info = ImageInfo("", "", record["width"], record["height"]).in_tiles(tiles)
    return info.boxes() / ([record["width"], record["height"]] * 2)


def data_url(picture: Image.Image) -> str:
    """Write a picture as a ``data:`` URL, at most ``LONGEST_SIDE`` pixels long."""
    small = picture.convert("RGB")
    small.info = {}  # of a camera: where and when, comments, a colour profile
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = BytesIO()
    small.save(file, "PNG", optimize=True)
    kind = "png"
    if file.tell() > PNG_BYTES:
        file = BytesIO()
        small.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
