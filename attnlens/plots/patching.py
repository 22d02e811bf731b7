"""Activation and path patching: where in the model the difference of two images is."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, new_figure, two_panels
from attnlens.plots.labels import readable
from attnlens.plots.matrix import check_dataset, draw_matrix, draw_places, number_axes
from attnlens.plots.style import style, width_in_inches

HEIGHT = 2.3
"""Height of a panel, in inches."""
UNIT = "change of logit difference (logits)"


def patching(data: xr.Dataset, *, width: str | float = "two-column") -> Figure:
    """Draw what patching the residual stream restores, by layer and position.

    Parameters
    ----------
    data
        From ``attnlens.lenses.activation_patching``.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A cell for each layer and position: change of the logit difference. The colour is strongest
        where all of the way from the corrupted to the clean one is restored.

    Raises
    ------
    InputError
        If it is given something else, the images make no difference, or ``width`` cannot be used.
    """
    check_dataset(data, "residual", "activation_patching")
    inches = width_in_inches(width)
    whole = _whole(data)
    segments = data["segment"].values.astype(str)
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        draw_matrix(axes, data["residual"].values, UNIT, limit=whole)
        axes.set_yticks(range(data.sizes["layer"]), map(str, data["layer"].values))
        axes.set(xlabel="position, from the first visual token on", ylabel="layer")
        edges = [i for i in range(1, len(segments)) if segments[i] != segments[i - 1]]
        for edge in edges:
            axes.axvline(edge - 0.5, color="0.3", linewidth=0.6, linestyle=(0, (2, 2)))
        starts = [0, *edges]
        for start, stop in zip(starts, [*edges, len(segments)], strict=True):
            if stop - start > 0.06 * len(segments):
                middle = (start + stop - 1) / 2
                axes.text(middle, -0.62, segments[start], ha="center", va="bottom", fontsize=6)
        finish(figure, HEIGHT, _caption(data, "what enters a layer at one position"))
    return figure


def paths(data: xr.Dataset, *, width: str | float = "two-column") -> Figure:
    """Draw what patching single paths restores: by head, and by visual token through the best one.

    Parameters
    ----------
    data
        From ``attnlens.lenses.path_patching``.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): for each head the visual token that restores most. Right:
        every visual token through the head that restores most.

    Raises
    ------
    InputError
        If it is given something else, the images make no difference, the prompt has several, or
        ``width`` cannot be used.
    """
    check_dataset(data, "path", "path_patching")
    inches = width_in_inches(width)
    whole, change = _whole(data), data["path"].values
    sign = float(np.sign(data["clean"] - data["corrupted"]))
    best_of_head = sign * (sign * change).max(-1)
    layer, head = np.unravel_index((sign * best_of_head).argmax(), best_of_head.shape)
    best = f"layer {data['layer'].values[layer]}, head {data['head'].values[head]}"
    with style():
        panels = two_panels(inches, HEIGHT)
        left, right = panels.axes
        draw_matrix(left, best_of_head, UNIT, limit=whole)
        left.set(xlabel="head", ylabel="layer")
        number_axes(left)
        left.set_yticks(range(data.sizes["layer"]), map(str, data["layer"].values))
        draw_places(right, data, change[layer, head], UNIT, whole)
        first, second = panels.places
        seen = (
            "the row that answers" if data.attrs["rows"] == "last" else "the text after the image"
        )
        what = f"key and value of one visual token, as {seen} sees them through one head,"
        places = f" {first}: the best visual token of each head. {second}: all of them, {best}."
        finish(panels.figure, panels.height, _caption(data, what) + places)
    return panels.figure


def _whole(data: xr.Dataset) -> float:
    """Return how far apart the two passes are, in units of the logit."""
    whole = abs(float(data["clean"] - data["corrupted"]))
    if not whole:
        raise InputError(
            "the logit difference is the same for both images, so that there is nothing to restore"
        )
    return whole


def _caption(data: xr.Dataset, what: str) -> str:
    clean, corrupted = (readable(data.attrs[f"{name}_token"]) for name in ("clean", "corrupted"))
    return (
        f"The model sees one image, but {what} comes from its pass over another. Change of the "
        f"logit difference ({clean!r} minus {corrupted!r}, step {data.attrs['step']}), which is "
        f"{float(data['corrupted']):.2f} with the one and {float(data['clean']):.2f} with the "
        "other: the strongest colour is all of the way."
    )
