"""Attention to each moment of a video, over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from attnlens.measures.frames import frame_shares
from attnlens.measures.inputs import regions_of
from attnlens.plots.curves import owner_text, shift_of
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.regions import name_regions, shade_regions, tag_handles
from attnlens.plots.style import COLOUR_MAP, LINES, style, width_in_inches

if TYPE_CHECKING:
    from attnlens.measures.inputs import TraceLike

HEIGHT = 2.6
"""Height of the figure without caption, in inches."""
LIGHTEST = 0.85
"""Part of the colour map that is used: the rest is too light for a thin line."""


def frame_trend(
    trace: TraceLike,
    item: int | None = None,
    *,
    layer: int | None = None,
    width: str | float = "two-column",
) -> Figure:
    """Draw attention to each pair of frames of a video over steps, a curve for each.

    Parameters
    ----------
    trace
        The record of one generation, recorded with ``visual_map=True``.
    item
        Which image or video of the prompt, counted from 0; by default the only video.
    layer
        Layer by its index in the model; by default the mean over the recorded layers.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A Matplotlib figure. The colour of a curve is the time at which its first frame is shown;
        regions of the response are shaded as in ``trend``.

    Raises
    ------
    InputError
        As ``attnlens.measures.frame_shares``, or if ``width`` cannot be used.
    """
    inches = width_in_inches(width)
    share = frame_shares(trace, item, layers=layer)
    regions = list(regions_of(trace))
    shift = shift_of(share.attrs["step_owner"])
    steps, seconds = share["step"].values, share["seconds"].values
    with style():
        colour_map = ListedColormap(mpl.colormaps[COLOUR_MAP](np.linspace(0, LIGHTEST, 256)))
        norm = Normalize(seconds[0], max(seconds[-1], seconds[0] + 1e-9))
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axes.set_ylim(0, 1.05 * float(share.max()) or 1)
        shade_regions(axes, regions, shift)
        for frame in range(share.sizes["frame"]):
            axes.plot(
                steps,
                share.isel(frame=frame).values,
                color=colour_map(norm(seconds[frame])),
                linestyle=LINES[frame % len(LINES)],
                linewidth=0.9,
                marker="." if len(steps) == 1 else None,
                zorder=3,
            )
        axes.set_ylabel("fraction of attention mass,\nper pair of frames")
        axes.set_xlabel(f"step (each stands for the {owner_text(share)})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(ScalarMappable(norm, colour_map), ax=axes, pad=0.01)
        bar.set_label("first frame shown at (s)")
        bar.outline.set_linewidth(0.4)
        handles = tag_handles(regions)
        if handles:
            figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        over = "heads and layers" if layer is None else f"the heads of layer {layer}"
        caption = (
            f"A curve for each of the {share.sizes['frame']} pairs of frames: sum of the attention "
            f"weights of its visual tokens, mean over {over}."
        )
        finish(figure, HEIGHT, caption)
        name_regions(axes, regions, shift)
    return figure
