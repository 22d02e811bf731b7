"""Regions of a response, drawn behind curves and along heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from attnlens.plots.labels import readable
from attnlens.plots.style import BACK_FILL, REGION_FILLS, tag_line

if TYPE_CHECKING:
    from attnlens.measures.inputs import RegionLike

NAME_SIZE = 6.5
"""Font size of region names, in points."""
NAME_ROWS = 3
"""Rows of region names above the axes; names that fit in none are left out."""
STRIP, STRIP_GAP = 0.05, 0.02
"""Height of the strip above a heat map and its distance, as fractions of the axes' height."""


def edges(region: RegionLike, shift: int) -> tuple[float, float]:
    """Where a region begins and ends on the step axis: half a step beyond its first and last step.

    ``shift`` is the step that owns response token 0: 0 where steps belong to their predicted token,
    1 where they belong to their query token.
    """
    return region.start + shift - 0.5, region.stop + shift - 0.5


def shade_regions(axes: Axes, regions: Sequence[RegionLike], shift: int) -> None:
    """Shade every region behind curves over steps, and mark the tags of ``back``.

    An inner region is drawn over the one around it. ``shift`` is that of `edges`.
    """
    for region, fill in _outer_first(regions):
        start, stop = edges(region, shift)
        axes.axvspan(start, stop, facecolor=fill, edgecolor="none", zorder=0, gid="region")
        if region.name != "back":
            continue
        axes.axvline(start, zorder=1, **tag_line("opening tag"))
        if region.closed:
            axes.axvline(stop, zorder=1, **tag_line("closing tag"))


def mark_regions(axes: Axes, regions: Sequence[RegionLike], shift: int) -> None:
    """Mark regions on a heat map: a strip along its upper edge, and a white line at either end.

    The limits of the axes must be set already.
    """
    low, high = axes.get_xlim()
    bottom = 1 + STRIP_GAP
    for region, fill in _outer_first(regions):
        start, stop = np.clip(edges(region, shift), low, high)
        axes.axvspan(
            start,
            stop,
            ymin=bottom,
            ymax=bottom + STRIP,
            facecolor=fill,
            edgecolor="0.5",
            linewidth=0.3,
            clip_on=False,
            gid="region",
        )
        for edge in (start, stop):
            if low < edge < high:
                axes.axvline(edge, color="white", linewidth=0.6)


def tag_handles(regions: Sequence[RegionLike]) -> list[Line2D]:
    """Legend entries of the tag lines that `shade_regions` draws."""
    back = [region for region in regions if region.name == "back"]
    handles = []
    if back:
        handles.append(Line2D([], [], label="<back>", **tag_line("opening tag")))
    if any(region.closed for region in back):
        handles.append(Line2D([], [], label="</back>", **tag_line("closing tag")))
    return handles


def name_regions(
    axes: Axes, regions: Sequence[RegionLike], shift: int, *, above: float = 1.0
) -> None:
    """Write the regions' names above the axes of a figure that has been laid out.

    Each name is written over the longest stretch where its region is the innermost one, at the
    height ``above`` (a fraction of the axes' height). Names that would touch move up a row.
    """
    taken = [-np.inf] * NAME_ROWS
    for centre, name in sorted(_name_places(axes, regions, shift)):
        text = axes.annotate(
            readable(name),
            (centre, above),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=NAME_SIZE,
            color="0.25",
            annotation_clip=False,
            gid="region name",
        )
        box = text.get_window_extent()
        row = next((row for row in range(NAME_ROWS) if taken[row] < box.x0), None)
        if row is None:
            text.remove()
            continue
        taken[row] = box.x1 + 0.25 * box.height
        text.set_position((0, 1.5 + row * (NAME_SIZE + 1.5)))


def _name_places(axes: Axes, regions: Sequence[RegionLike], shift: int) -> list[tuple[float, str]]:
    """Centre of the longest visible stretch of each region, with the region's name."""
    low, high = (round(limit + 0.5) for limit in axes.get_xlim())
    innermost = np.full(high - low, -1)
    for i in sorted(range(len(regions)), key=lambda i: -_length(regions[i])):
        start, stop = (max(round(edge + 0.5) - low, 0) for edge in edges(regions[i], shift))
        innermost[start:stop] = i
    bounds = np.flatnonzero(np.diff(innermost, prepend=-2, append=-2))
    longest: dict[int, tuple[int, int]] = {}
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        best = longest.get(int(innermost[start]), (0, 0))
        if stop - start > best[1] - best[0]:
            longest[int(innermost[start])] = (start, stop)
    return [
        (low + (start + stop - 1) / 2, regions[i].name)
        for i, (start, stop) in longest.items()
        if i >= 0
    ]


def _outer_first(regions: Sequence[RegionLike]) -> list[tuple[RegionLike, str]]:
    """Regions with their shades, longest first, so that inner ones are drawn over outer ones.

    ``back`` is yellow, the others take the greys in order.
    """
    greys = [region for region in regions if region.name != "back"]
    shades = {id(region): REGION_FILLS[i % len(REGION_FILLS)] for i, region in enumerate(greys)}
    pairs = [(region, shades.get(id(region), BACK_FILL)) for region in regions]
    return sorted(pairs, key=lambda pair: -_length(pair[0]))


def _length(region: RegionLike) -> int:
    return region.stop - region.start
