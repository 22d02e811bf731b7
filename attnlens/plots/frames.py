"""Which moment of a video a step looks at, and where in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.frames import grids_of, moments, video_of
from attnlens.measures.inputs import dataset_of, select_layers, visual_map_of
from attnlens.models.recorded import recorded_frames
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.overlay import lay_over, moment_title, step_place
from attnlens.plots.style import style, width_in_inches

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.measures.inputs import TraceLike

MOST = 12
"""Pairs of frames that are shown where none are chosen."""
PANEL = 1.2
"""Least width of a panel, in inches."""


def frames(
    trace: TraceLike,
    step: int,
    *,
    video: Any = None,
    item: int | None = None,
    layer: int | None = None,
    pairs: Sequence[int] | None = None,
    width: str | float = "two-column",
) -> Figure:
    """Draw one step's attention to each visual token over the frames of a video.

    Parameters
    ----------
    trace
        The record of one generation, recorded with ``visual_map=True``.
    step
        Step to show; negative ones count from the last. The token that looks is the step's query
        token, the one fed in.
    video
        The video, as it was given to ``vlm.prompt``. By default the file or folder that was
        recorded, if it is still there and unchanged.
    item
        Which image or video of the prompt, counted from 0; by default the only video.
    layer
        Layer by its index in the model; by default the mean over the recorded layers.
    pairs
        Which pairs of frames to show, counted from 0; by default all, or 12 spread evenly.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A Matplotlib figure: a panel for each pair, with its first frame, the seconds of its first
        and its last frame, and what it gets in all. Each cell is a visual token, coloured by its
        fraction of attention mass (mean over heads), on one scale for all panels.

    Raises
    ------
    InputError
        If the trace has no visual map or no such video; the step, layer or pair does not exist; the
        video is gone or changed and none is given, or another size; or ``width`` cannot be used.
    """
    inches = width_in_inches(width)
    data = dataset_of(trace)
    number, record = video_of(data, item)
    visual_map_of(data)  # refused before the step is
    moment = data.isel(step=step_place(step, data.sizes["step"]))
    heat = _heat(select_layers(moment, layer)["visual_map"].mean("layer"), number)
    shown = _checked_pairs(pairs, len(heat))
    first = [grids_of(record)[i][0] for i in shown]
    indices = record["frames"]["indices"]
    pictures = recorded_frames(record, number, [indices[i] for i in first], video)
    seconds = moments(record)
    columns = min(len(shown), max(1, int((inches - 0.8) / PANEL)))
    rows = math.ceil(len(shown) / columns)
    wide, high = pictures[0].size
    panel = (inches - 0.8) / columns * high / wide + 0.35
    with style():
        figure = new_figure(inches, rows * panel + 0.4)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()  # also where no pair is left for a panel
        for axes, picture, pair in zip(grid.flat, pictures, shown, strict=False):
            cells = lay_over(axes, picture, heat[pair], heat[shown].max())
            axes.set_title(f"{_when(seconds[pair])}\n{heat[pair].sum():#.2g}", fontsize=7)
        figure.suptitle(moment_title(moment).replace("\n", " "), fontsize=8)
        bar = figure.colorbar(cells, ax=grid.ravel().tolist(), fraction=0.03, pad=0.01)
        bar.set_label("fraction of attention mass,\nper visual token")
        bar.outline.set_linewidth(0.4)
        which = "mean over layers" if layer is None else f"layer {layer}"
        caption = (
            f"Mean over heads, {which}. Above each first frame of a pair: when the pair is shown, "
            f"and what it gets; the video gets {heat.sum():.3g} in all."
        )
        if len(shown) < len(heat):
            caption += f" Shown are {len(shown)} of {len(heat)} pairs."
        finish(figure, rows * panel + 0.4, caption)
    return figure


def _heat(visual: xr.DataArray, number: int) -> np.ndarray:
    """Weights of a video's visual tokens in their places, float [pairs, rows, columns]."""
    mine = visual.isel(visual=visual["visual_image"].values == number)
    places = [mine[f"visual_{name}"].values for name in ("tile", "row", "column")]
    if not mine.size or min(int(place.min()) for place in places) < 0:
        raise InputError("the trace does not know the places of the video's visual tokens")
    heat = np.zeros([int(place.max()) + 1 for place in places])
    heat[tuple(places)] = mine.values
    return heat


def _checked_pairs(pairs: Sequence[int] | None, count: int) -> list[int]:
    if pairs is None:
        return sorted({int(i) for i in np.linspace(0, count - 1, min(MOST, count)).round()})
    chosen = list(pairs) if isinstance(pairs, (Sequence, range, np.ndarray)) else [pairs]
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in chosen)
    if not chosen or not whole or not all(0 <= i < count for i in chosen):
        raise InputError(f"pairs is {pairs!r}: the video has pairs 0 to {count - 1}; give a list")
    return [int(i) for i in chosen]


def _when(seconds: np.ndarray) -> str:
    first, last = seconds
    return f"{first:.1f} s" if first == last else f"{first:.1f}–{last:.1f} s"
