"""The logit lens: what the residual stream says after each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.labels import readable
from attnlens.plots.matrix import check_dataset
from attnlens.plots.style import COLOUR_MAP, style, width_in_inches

ROW = 0.26
"""Height of a layer, in inches."""
LONGEST = 9
"""Longest word of a cell, in characters."""


def logit_lens(
    data: xr.Dataset, positions: Sequence[int] | None = None, *, width: str | float = "two-column"
) -> Figure:
    """Draw the most likely token after each layer, at some positions.

    Parameters
    ----------
    data
        From ``attnlens.lenses.logit_lens``.
    positions
        Steps, or numbers of visual tokens; the first twelve when not given.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A cell for each layer and position: the most likely token, coloured by its probability.

    Raises
    ------
    InputError
        If it is given something else, a position is not there, or ``width`` cannot be used.
    """
    check_dataset(data, "top_token", "logit_lens")
    inches = width_in_inches(width)
    count = data.sizes["position"]
    chosen = list(range(min(12, count))) if positions is None else [int(p) for p in positions]
    if not chosen or not all(0 <= p < count for p in chosen):
        raise InputError(f"positions={chosen!r}: give some from 0 to {count - 1}")
    some = data.isel(position=chosen, rank=0)
    likely = np.exp(some["top_log_probability"].values)
    words = some["top_token"].values
    height = ROW * data.sizes["layer"] + 0.75
    on_response = "response_token" in data.coords
    with style():
        figure = new_figure(inches, height)
        axes = figure.add_subplot()
        cells = axes.imshow(likely, cmap=COLOUR_MAP, vmin=0, vmax=1, aspect="auto", rasterized=True)
        for (row, column), value in np.ndenumerate(likely):
            text = readable(str(words[row, column]), LONGEST)
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        labels = [
            readable(str(some["response_token"].values[i]), LONGEST) if on_response else str(p)
            for i, p in enumerate(chosen)
        ]
        axes.set_xticks(range(len(chosen)), labels, fontsize=6)
        axes.set_yticks(range(data.sizes["layer"]), map(str, data["layer"].values))
        axes.set(xlabel="token of the response" if on_response else "visual token", ylabel="layer")
        bar = figure.colorbar(cells, ax=axes, pad=0.02, aspect=18)
        bar.set_label("probability")
        bar.outline.set_linewidth(0.4)
        finish(
            figure,
            height,
            "Logit lens: the most likely token when the residual stream after a layer is read by "
            "the last norm and the unembedding; the last layer is the model's own prediction.",
        )
    return figure
