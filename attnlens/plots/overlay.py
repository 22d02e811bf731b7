"""Where in the image a step looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.patches import Rectangle

from attnlens.errors import InputError
from attnlens.measures.inputs import dataset_of, select_layers, visual_map_of
from attnlens.models.images import ImageInfo, Tile
from attnlens.models.recorded import recorded_image
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.labels import readable
from attnlens.plots.style import style, width_in_inches

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from PIL import Image

    from attnlens.measures.inputs import TraceLike

MAP_COLOUR = "#D0006F"
"""Colour of the map: rare in images."""
RASTER = 480
"""Longest side of what is drawn over an image of several tiles, in cells."""
OPACITY = 0.6
"""Opacity of the cell with the most mass; a cell without mass is clear."""
TITLE_TOKEN = 20
"""Characters of a token in the title."""
OUTLINE = (("black", 2.0), ("white", 0.8))
"""Colours and widths (points) of the two lines of an outline: one shows on any picture."""


def overlay(
    trace: TraceLike,
    step: int,
    *,
    image: str | Path | Image.Image | None = None,
    layer: int | None = None,
    image_index: int = 0,
    boxes: Iterable[Sequence[float]] | None = None,
    width: str | float = "one-column",
) -> Figure:
    """Draw one step's attention to each visual token over the image.

    Parameters
    ----------
    trace
        The record of one generation, recorded with ``visual_map=True``.
    step
        Step to show; negative ones count from the last. The token that looks is the step's query
        token, the one fed in.
    image
        The image, as a path or a PIL image. By default the file that was recorded, if it is still
        there and unchanged.
    layer
        Layer by its index in the model; by default the mean over the recorded layers.
    image_index
        Which image of the prompt, counted from 0.
    boxes
        Boxes to outline, each (left, top, right, bottom) in pixels of the image, such as that of
        the object that the token names.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A Matplotlib figure. Each cell is the pixel box of a visual token, coloured by its
        fraction of attention mass (mean over heads). An image that is encoded in several grids,
        such as tiles and a thumbnail, shows their sum, see ``spread``.

    Raises
    ------
    InputError
        If the trace has no visual map or does not know the image's grid; the step, layer or image
        does not exist; the image file is gone or changed and none is given; the image has another
        size than the recorded one; a box is not four numbers or is outside the image; or
        ``width`` cannot be used.
    """
    inches = width_in_inches(width)
    data = dataset_of(trace)
    visual_map_of(data)  # refused before the step is
    moment = data.isel(step=step_place(step, data.sizes["step"]))
    record = _record(data.attrs.get("images"), image_index)
    picture = recorded_image(record, image_index, image)
    outlined = _checked_boxes(boxes, picture.size)
    weights = select_layers(moment, layer)["visual_map"].mean("layer")
    values, total, tiled = _cells(weights, record, image_index)
    pixels_wide, pixels_high = picture.size
    with style():
        panel = min(max((inches - 0.8) * pixels_high / pixels_wide, 1.0), 9.0)
        figure = new_figure(inches, panel + 0.4)
        axes = figure.add_subplot()
        cells = lay_over(axes, picture, values, values.max())
        for left, top, right, bottom in outlined:
            for colour, line in OUTLINE:
                axes.add_patch(
                    Rectangle(
                        (left, top),
                        right - left,
                        bottom - top,
                        fill=False,
                        edgecolor=colour,
                        linewidth=line,
                        clip_on=False,  # whole at the image's edge, too
                        gid="box",
                    )
                )
        axes.set_title(moment_title(moment))
        bar = figure.colorbar(cells, cax=axes.inset_axes((1.02, 0, 0.04, 1)))
        what = "cell of the finest grid" if tiled else "visual token"
        bar.set_label(f"fraction of attention mass,\nper {what}")
        bar.outline.set_linewidth(0.4)
        which = "mean over layers" if layer is None else f"layer {layer}"
        caption = f"Mean over heads, {which}; the image gets {total:.3g} in all."
        grids = sum(tile["columns"] > 0 for tile in record.get("tiles", ()))
        if grids > 1:
            caption += f" It is encoded in {grids} grids, which are added up."
        if outlined:
            caption += f" Outlined: the {'box' if len(outlined) == 1 else 'boxes'} given."
        finish(figure, panel + 0.4, caption)
    return figure


def lay_over(axes: Axes, picture: Image.Image, values: np.ndarray, top: float) -> AxesImage:
    """Draw a picture and values ``[row, column]`` over it; the darkest colour is ``top``."""
    axes.set_axis_off()
    extent = (0, picture.width, picture.height, 0)
    axes.imshow(picture, extent=extent)
    return axes.imshow(
        values, extent=extent, interpolation="nearest", cmap=_map_colours(), vmin=0, vmax=top or 1
    )


def step_place(step: Any, count: int) -> int:
    """Place of a step, counted from 0."""
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool):
        raise InputError(f"step is {step!r}: give a whole number")
    if not -count <= step < count:
        raise InputError(f"step is {step}: the trace has {count} steps, 0 to {count - 1}")
    return int(step) % count


def _record(images: Any, index: Any) -> dict[str, Any]:
    """Return what the trace knows of an image."""
    count = len(images or ())
    if not isinstance(index, (int, np.integer)) or not 0 <= index < count:
        raise InputError(f"image_index is {index!r}: the trace has {count} images, counted from 0")
    if images[index].get("frames"):
        raise InputError(f"image {index} is a video: draw it with plots.frames")
    return images[index]


def _cells(
    visual: xr.DataArray, record: dict[str, Any], index: int
) -> tuple[np.ndarray, float, bool]:
    """Return what is drawn over an image [row, column], all that it gets, and whether in tiles."""
    mine = visual.isel(visual=visual["visual_image"].values == index)
    tiles = [Tile(**tile) for tile in record.get("tiles", ())]
    if not tiles:
        values = _grid(mine, record, index)
        return values, float(values.sum()), False
    info = ImageInfo("", "", record["width"], record["height"]).in_tiles(tiles)
    count = sum(tile.count for tile in tiles)
    if mine.size != count:
        raise InputError(
            f"image {index} has {mine.size} visual tokens, and its tiles {count}: record a "
            "prompt made by vlm.prompt"
        )
    return spread(info, mine.values), float(mine.sum()), True


def spread(info: ImageInfo, weights: np.ndarray) -> np.ndarray:
    """Spread the weight of each visual token evenly over what it shows, and add tiles up.

    Parameters
    ----------
    info
        An image with its tiles.
    weights
        [visual tokens]; those of tokens that show nothing are left out.

    Returns
    -------
    numpy.ndarray
        [RASTER at most, RASTER at most]: the weight in each place for an area as large as the
        smallest one that a token shows.
    """
    boxes = info.boxes()
    shown = ~np.isnan(boxes[:, 0])
    if not shown.any():
        raise InputError(
            "where the visual tokens are in the picture is not known for this family of models"
        )
    boxes, weights = boxes[shown], weights[shown]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    scale = min(1.0, RASTER / max(info.width, info.height))
    height, width = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    x = (np.arange(width) + 0.5) * info.width / width
    y = (np.arange(height) + 0.5) * info.height / height
    found = np.zeros((height, width))
    for box, weight in zip(boxes, weights * areas.min() / areas, strict=True):
        columns = slice(*np.searchsorted(x, [box[0], box[2]]))
        rows = slice(*np.searchsorted(y, [box[1], box[3]]))
        found[rows, columns] += weight
    return found


def _grid(mine: xr.DataArray, record: dict[str, Any], index: int) -> np.ndarray:
    """Values of one image's visual tokens in their places, float ``[row, column]``."""
    rows, columns = mine["visual_row"].values, mine["visual_column"].values
    shape = (record["rows"], record["columns"])
    if mine.size != shape[0] * shape[1] or min(rows, default=-1) < 0:
        raise InputError(
            f"image {index} has {mine.size} visual tokens, whose places in a grid of "
            f"{shape[0]} x {shape[1]} are not known: record a prompt made by vlm.prompt"
        )
    values = np.empty(shape)
    values[rows, columns] = mine.values
    return values


def _checked_boxes(boxes: Any, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Return the boxes to outline, each (left, top, right, bottom) inside the image."""
    if boxes is None:
        return []
    listed = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    for box in listed:
        four = isinstance(box, (Sequence, np.ndarray)) and len(box) == 4
        if not four or not all(isinstance(x, Real) and not isinstance(x, bool) for x in box):
            raise InputError(
                f"a box is {box!r}: give a list of boxes, each (left, top, right, bottom) in pixels"
            )
        left, top, right, bottom = box
        if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
            raise InputError(
                f"the box {tuple(box)!r} is not inside the image: give left < right from 0 to "
                f"{size[0]} and top < bottom from 0 to {size[1]}"
            )
    return [tuple(float(x) for x in box) for box in listed]


def _map_colours() -> ListedColormap:
    """Return a colour map of one colour, from clear to nearly opaque."""
    return ListedColormap([to_rgba(MAP_COLOUR, alpha) for alpha in np.linspace(0, OPACITY, 256)])


def moment_title(moment: xr.Dataset) -> str:
    """Step and tokens, for the title."""
    looking = readable(str(moment["query_token"].item()), TITLE_TOKEN)
    predicted = readable(str(moment["predicted_token"].item()), TITLE_TOKEN)
    return f"step {int(moment['step'])}: “{looking}” looks,\n“{predicted}” follows"
