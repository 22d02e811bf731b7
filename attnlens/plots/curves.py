"""Curves over steps, as `trend` and `tokens` draw them, and words for a measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from attnlens.errors import InputError
from attnlens.measures import shares, visual_share
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import regions_of
from attnlens.plots.labels import NO_GLYPH, NOTHING, readable
from attnlens.plots.regions import shade_regions
from attnlens.plots.style import CURVE_LINES, CURVE_NAMES, LONE_COLOUR, colours, item_line

if TYPE_CHECKING:
    from attnlens.measures.inputs import RegionLike, TraceLike

LONE = "measure"
"""Name of the curve of a definition that has only one."""
MARKED = 60
"""Up to this many steps along an axis, every step gets a marker."""


@dataclass(frozen=True)
class Curves:
    """A measure with what is needed to draw it.

    Attributes
    ----------
    share : xarray.DataArray
        ``[step, curve]``, in the units of its definition.
    labels : list of str
        For each step, the token that owns it, as `readable` gives it.
    regions : sequence of regions
        Regions of the response.
    shift : int
        Step that owns response token 0.
    """

    share: xr.DataArray
    labels: list[str]
    regions: list[RegionLike]
    shift: int

    @property
    def steps(self) -> list[int]:
        """The steps."""
        return [int(step) for step in self.share["step"].values]

    @property
    def top(self) -> float:
        """Upper limit of the y axis: a little above the highest value."""
        values = self.share.values[np.isfinite(self.share.values)]
        return 1.05 * float(values.max()) if values.size and values.max() > 0 else 1.0

    def handles(self) -> list[Line2D]:
        """Legend entries of the curves."""
        return [Line2D([], [], **_look(name, self.share)) for name in self.share["curve"].values]


def read_curves(
    trace: TraceLike,
    definition: str,
    steps: tuple[int, int] | None = None,
    *,
    items: bool = False,
) -> Curves:
    """Measure a trace, at steps ``(first, stop)`` or all of them, for a figure.

    A definition that speaks of the image alone gives one curve. With ``items``, each image or video
    of the prompt has one.

    Raises
    ------
    InputError
        If ``trace`` is not a trace or has no visual keys, the definition is unknown, ``steps`` is
        not such a pair, or no step is left to draw.
    """
    if items or get_definition(definition).has_curves:
        share = shares(trace, definition, items=items)
    else:
        share = visual_share(trace, definition).expand_dims(curve=[LONE], axis=1)
    if steps is not None:
        start, stop = _checked_steps(steps)
        share = share.sel(step=(share["step"] >= start) & (share["step"] < stop))
    if not share.sizes["step"]:
        raise InputError(
            f"nothing to draw: definition {definition!r} has no step in this trace"
            + (f" within steps {steps!r}" if steps is not None else "")
        )
    return Curves(
        share=share,
        labels=[readable(str(token)) for token in share["token"].values],
        regions=list(regions_of(trace)),
        shift=shift_of(share.attrs["step_owner"]),
    )


def shift_of(step_owner: str) -> int:
    """Step that owns response token 0: it is predicted at step 0 and fed in at step 1."""
    return {"predicted": 0, "query": 1}[step_owner]


def owner_text(array: xr.DataArray) -> str:
    """Say what the tokens on a step axis are."""
    return {"predicted": "token predicted", "query": "token fed in"}[array.attrs["step_owner"]]


def measure_text(array: xr.DataArray) -> str:
    """Name of a measure for an axis, with its unit where the name does not say it."""
    name, units = array.attrs["long_name"], array.attrs["units"]
    return name if units in name else f"{name} ({units})"


def caption_text(array: xr.DataArray) -> str:
    """Definition, formula, reduction and source of a measure, for a caption."""
    attrs = array.attrs
    per_head = get_definition(attrs["definition"]).per_head
    names = array["curve"].values.tolist() if "curve" in array.coords else []
    sign = ":" if "query" in names else " ="
    text = f"{attrs['definition']}{sign} {attrs['formula']}" + ", per layer and head" * per_head
    if attrs["reduction"] == "mean":
        text += "; then mean over " + ("heads and layers" if per_head else "layers")
    text += f". Source: {attrs['source']}."
    if {*names} - {*CURVE_NAMES, LONE}:
        text += " The visual keys of each image and video have a curve of their own."
    return text


def label_note(labels: list[str]) -> str:
    """Explain the signs in labels that stand for what cannot be shown."""
    note = ""
    if any(NO_GLYPH in label for label in labels):
        note += f" {NO_GLYPH}: a character that no font here has."
    if NOTHING in labels:
        note += f" {NOTHING}: a token without visible text."
    return note


def draw_curves(axes: Axes, curves: Curves, first: int, last: int) -> None:
    """Draw the curves and regions from step ``first`` to step ``last``, both included."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_ylim(0, curves.top)
    shade_regions(axes, curves.regions, curves.shift)
    part = curves.share.sel(step=slice(first, last))
    for name in part["curve"].values:
        axes.plot(
            part["step"].values,
            part.sel(curve=name).values,
            marker="." if last - first < MARKED else None,
            zorder=3,
            **_look(name, part),
        )


def _look(name: str, share: xr.DataArray) -> dict[str, Any]:
    if name == LONE:
        return {"color": LONE_COLOUR, "linestyle": "-", "label": share.attrs["long_name"]}
    if name in CURVE_NAMES:
        line = CURVE_LINES[name]
        return {"color": colours()[name], "linestyle": line, "label": CURVE_NAMES[name]}
    return {**item_line(int(name.split()[-1])), "label": name}  # such as image 0


def _checked_steps(steps: Any) -> tuple[int, int]:
    pair = tuple(steps) if isinstance(steps, (tuple, list)) else ()
    whole = all(isinstance(step, (int, np.integer)) for step in pair)
    if len(pair) != 2 or not whole or not 0 <= pair[0] < pair[1]:
        raise InputError(f"steps is {steps!r}: give (first, stop) with 0 <= first < stop")
    return int(pair[0]), int(pair[1])
