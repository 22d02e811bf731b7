"""Heat maps of signed values: layers by heads, and visual tokens in their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError

SIGNED_MAP = "PuOr_r"
"""Colour map of values around 0, safe for the colour-blind."""


def draw_matrix(axes: Axes, values: np.ndarray, label: str, *, limit: float | None = None) -> None:
    """Draw signed values [rows, columns] with a colour bar; 0 is white.

    Parameters
    ----------
    axes
        Where.
    values
        The values; NaN stays empty.
    label
        Of the colour bar: what the values are, with their unit.
    limit
        The value of the strongest colour; the largest one when not given.
    """
    finite = np.abs(values[np.isfinite(values)])
    limit = limit or (float(finite.max()) if finite.size and finite.max() > 0 else 1.0)
    cells = axes.imshow(
        values,
        cmap=SIGNED_MAP,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        rasterized=True,
    )
    assert axes.figure is not None
    bar = axes.figure.colorbar(cells, ax=axes, pad=0.02, aspect=18)
    bar.set_label(label)
    bar.outline.set_linewidth(0.4)


def draw_places(
    axes: Axes, data: xr.Dataset, values: np.ndarray, label: str, limit: float | None = None
) -> None:
    """Draw a signed value for each visual token, in its place in the image.

    Raises
    ------
    InputError
        If the places are not known, as of several images.
    """
    rows, columns = (np.asarray(data[f"visual_{name}"].values) for name in ("row", "column"))
    if min(rows, default=-1) < 0:
        raise InputError(
            "the places of the visual tokens are not known: the prompt has several images"
        )
    grid = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    grid[rows, columns] = values
    draw_matrix(axes, grid, label, limit=limit)
    axes.set_aspect("equal")
    axes.set(xlabel="column of visual tokens", ylabel="row")
    number_axes(axes)


def number_axes(axes: Axes) -> None:
    """Label both axes with whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))


def check_dataset(data: Any, needed: str, maker: str, dimension: str | None = None) -> xr.Dataset:
    """Refuse what another function made.

    Raises
    ------
    InputError
        If it is no dataset with the variable ``needed``, or that lacks a dimension.
    """
    there = isinstance(data, xr.Dataset) and needed in data.data_vars
    if not there or (dimension is not None and dimension not in data[needed].dims):
        raise InputError(
            f"{type(data).__name__} was given: give what attnlens.lenses.{maker} returns"
        )
    return data
