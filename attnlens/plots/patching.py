"""Activation and path patching: where in the model the difference of two images is."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.plots.figure import Figure, finish, new_figure, two_panels
from attnlens.plots.labels import readable
from attnlens.plots.matrix import check_dataset, draw_matrix, draw_places, number_axes
from attnlens.plots.style import style, width_in_inches

HEIGHT = 2.3
"""Height of a panel, in inches."""


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
        A cell for each layer and position, as a fraction of the difference between the clean and
        the corrupted logit difference: 0 changes nothing, 1 restores it.

    Raises
    ------
    InputError
        If it is given something else, or ``width`` cannot be used.
    """
    check_dataset(data, "residual", "activation_patching")
    inches = width_in_inches(width)
    restored = data["residual"] / (data["clean"] - data["corrupted"])
    segments = data["segment"].values.astype(str)
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        draw_matrix(axes, restored.values, "fraction restored", limit=1.0)
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
        If it is given something else, ``width`` cannot be used, or the prompt has several images.
    """
    check_dataset(data, "path", "path_patching")
    inches = width_in_inches(width)
    restored = (data["path"] / (data["clean"] - data["corrupted"])).values
    layer, head = np.unravel_index(restored.max(-1).argmax(), restored.shape[:2])
    best = f"layer {data['layer'].values[layer]}, head {data['head'].values[head]}"
    with style():
        panels = two_panels(inches, HEIGHT)
        left, right = panels.axes
        draw_matrix(left, restored.max(-1), "fraction restored", limit=1.0)
        left.set(xlabel="head", ylabel="layer")
        number_axes(left)
        left.set_yticks(range(data.sizes["layer"]), map(str, data["layer"].values))
        draw_places(right, data, restored[layer, head], "fraction restored", 1.0)
        first, second = panels.places
        seen = (
            "the row that answers" if data.attrs["rows"] == "last" else "the text after the image"
        )
        what = f"key and value of one visual token, as {seen} sees them through one head,"
        places = f" {first}: the best visual token of each head. {second}: all of them, {best}."
        finish(panels.figure, panels.height, _caption(data, what) + places)
    return panels.figure


def _caption(data: xr.Dataset, what: str) -> str:
    clean, corrupted = (readable(data.attrs[f"{name}_token"]) for name in ("clean", "corrupted"))
    return (
        f"The model sees one image, but {what} comes from its pass over another. Logit of "
        f"{clean!r} minus that of {corrupted!r} at step {data.attrs['step']}, as a fraction of the "
        f"way from {float(data['corrupted']):.2f} (corrupted) to {float(data['clean']):.2f} "
        "(clean)."
    )
