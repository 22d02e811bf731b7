"""Attention to the image by layer and by head, step by step."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Affine2D

from attnlens.errors import InputError
from attnlens.measures import visual_share
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import regions_of
from attnlens.plots.curves import caption_text, measure_text, owner_text, shift_of
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.regions import STRIP, STRIP_GAP, mark_regions, name_regions
from attnlens.plots.style import COLOUR_MAP, style, width_in_inches

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.measures.inputs import TraceLike

PANEL = 1.7
"""Least height of a panel, in inches."""
INCHES_PER_LINE = 0.06
"""Least height of a line of a heat map."""


def layers(
    trace: TraceLike,
    definition: str = "mass",
    *,
    layer: int | None = None,
    width: str | float = "two-column",
) -> Figure:
    """Draw two heat maps of attention to the image: step by layer, and step by head.

    Regions of the response are marked above each panel; lines show where they begin and end.

    Parameters
    ----------
    trace
        The record of one generation.
    definition
        Name of a definition of `attnlens.measures`. One that has no value for a single head
        (``look-back``, ``reflection-v``) gives the first panel only.
    layer
        Layer that the second panel shows, by its index in the model; by default the mean over the
        recorded layers.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A Matplotlib figure. The first panel holds the mean over heads in every layer, the second
        every head. Each has its own colour scale, from 0 to its highest value.

    Raises
    ------
    InputError
        If the definition is unknown or, with ``layer``, has no value for a single head; if the
        layer was not recorded, ``width`` cannot be used, or the trace has no visual keys or step.
    """
    inches = width_in_inches(width)
    by_layer = visual_share(trace, definition, reduction="layer")
    if not by_layer.sizes["step"]:
        raise InputError(f"nothing to draw: definition {definition!r} has no step in this trace")
    panels = [("layer", "mean over heads", by_layer)]
    if layer is not None or get_definition(definition).per_head:
        chosen = None if layer is None else [layer]
        by_head = visual_share(trace, definition, layers=chosen, reduction="none").mean("layer")
        by_head.attrs = by_layer.attrs
        name = "mean over layers" if layer is None else f"layer {layer}"
        panels.append(("head", name, by_head))
    regions, shift = list(regions_of(trace)), shift_of(by_layer.attrs["step_owner"])
    heights = [max(PANEL, INCHES_PER_LINE * array.sizes[dim]) for dim, _, array in panels]
    height = sum(heights) + 0.5 * len(panels)
    with style():
        figure = new_figure(inches, height)
        grid = figure.subplots(
            len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        all_axes = list(grid[:, 0])
        for axes, (dim, name, array) in zip(all_axes, panels, strict=True):
            _heat_map(axes, array.transpose(dim, "step"), dim, name)
            mark_regions(axes, regions, shift)
        all_axes[-1].set_xlabel(f"step (each stands for the {owner_text(by_layer)})")
        finish(figure, height, caption_text(by_layer))
        for axes in all_axes:
            name_regions(axes, regions, shift, above=1 + STRIP_GAP + STRIP)
    return figure


def _heat_map(axes: Axes, array: xr.DataArray, dim: str, name: str) -> None:
    """Draw an array of ``[dim, step]``, one line for each layer or head, and its colour bar."""
    import seaborn

    steps, lines = array["step"].values, array[dim].values
    finite = array.values[np.isfinite(array.values)]
    first = steps[0] - 0.5
    seaborn.heatmap(
        array.values,
        ax=axes,
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=finite.max() if finite.size and finite.max() > 0 else 1,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"pad": 0.01, "aspect": 18, "label": textwrap.fill(measure_text(array), 28)},
        rasterized=True,  # thousands of cells would swell a PDF
        # seaborn counts the corners of cells from 0
        transform=Affine2D().translate(first, -0.5) + axes.transData,
    )
    axes.set(xlim=(first, steps[-1] + 0.5), ylim=(-0.5, len(lines) - 0.5))
    axes.set_ylabel(f"{dim}\n({name})")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Lines are in the order recorded; their labels are indices in the model.
    axes.yaxis.set_major_formatter(lambda value, _: _line_label(lines, value))
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _line_label(lines: Any, value: float) -> str:
    """Index of a layer or head at a height of the heat map; nothing outside it."""
    return str(int(lines[int(value)])) if 0 <= value < len(lines) else ""
