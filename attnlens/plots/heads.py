"""Which layers and heads look: what hiding the image from them does, and how much they attend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, new_figure, two_panels
from attnlens.plots.matrix import check_dataset, draw_matrix, number_axes
from attnlens.plots.style import ZERO_LINE, colours, style, width_in_inches
from attnlens.text import counted

HEIGHT = 2.3
"""Height of a panel, in inches."""
NAMED = 3
"""How many heads are named."""


def heads(data: xr.Dataset, *, width: str | float = "two-column") -> Figure:
    """Draw what the knock-out of each head does, and this against its attention to the image.

    Parameters
    ----------
    data
        From ``attnlens.lenses.looking_heads``.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): change of the log-probability by layer and head. Right: a
        point for each head, its loss against its mass; the three with the largest loss are named.

    Raises
    ------
    InputError
        If it is given something else, or ``width`` cannot be used.
    """
    check_dataset(data, "all_heads", "looking_heads")
    inches = width_in_inches(width)
    change, mass = data["change"].values, data["mass"].values
    with style():
        panels = two_panels(inches, HEIGHT)
        left, right = panels.axes
        draw_matrix(left, change, "change of log-probability (nats)")
        left.set(xlabel="head", ylabel="layer")
        number_axes(left)
        right.axhline(0, **ZERO_LINE)
        right.plot(mass.ravel(), -change.ravel(), "o", color=colours()["image"], markersize=3.5)
        for place in np.argsort(change, axis=None)[:NAMED]:
            layer, head = np.unravel_index(place, change.shape)
            name = f"{data['layer'].values[layer]}.{data['head'].values[head]}"
            at = (mass[layer, head], -change[layer, head])
            right.annotate(name, at, (3, 3), textcoords="offset points", fontsize=6)
        right.set(xlabel="mass on the image (fraction)", ylabel="loss of log-probability (nats)")
        first, second = panels.places
        rho = data.attrs["rho"]
        agree = "" if np.isnan(rho) else f" Spearman's rho of the two is {rho:.2f}."
        count = len(data.attrs["steps"])
        caption = (
            f"{first}: change of the log-probability of the tokens of {counted(count, 'step')} "
            "when one head does not see the image (all heads: "
            f"{float(data['all_heads']):.2f} nats); mean over the steps. {second}: the loss "
            "against the fraction of attention mass on the image, mean over the response; "
            f"layer.head is named.{agree}"
        )
        finish(panels.figure, panels.height, caption)
    return panels.figure


def windows(
    data: xr.Dataset, steps: Sequence[int] | None = None, *, width: str | float = "one-column"
) -> Figure:
    """Draw what cutting edges in a window of layers does.

    Parameters
    ----------
    data
        From ``attnlens.lenses.window_sweep``.
    steps
        The steps whose tokens count; all when not given.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Change of the log-probability of the response's tokens, mean over the steps, by the first
        layer of the window.

    Raises
    ------
    InputError
        If it is given something else, a step is not there, or ``width`` cannot be used.
    """
    check_dataset(data, "change", "window_sweep", dimension="first_layer")
    inches = width_in_inches(width)
    count = data.sizes["step"]
    chosen = list(range(count)) if steps is None else [int(step) for step in steps]
    if not chosen or not all(0 <= step < count for step in chosen):
        raise InputError(f"steps={chosen!r}: give some from 0 to {count - 1}")
    mean = data["change"].isel(step=chosen).mean("step")
    window = data.attrs["window"]
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        axes.axhline(0, **ZERO_LINE)
        axes.plot(data["first_layer"], mean, "o-", color=colours()["image"])
        axes.set(
            xlabel=f"first of {window} layers" if window > 1 else "layer",
            ylabel="change of log-probability (nats)",
        )
        number_axes(axes)
        caption = (
            f"Change of the log-probability of {len(chosen)} tokens of the response, mean, when "
            f"{data.attrs['queries']} do not see {data.attrs['keys']} keys in "
            f"{f'{window} layers in a row' if window > 1 else 'one layer'}."
        )
        finish(figure, HEIGHT, caption)
    return figure
