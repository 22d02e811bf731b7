"""Which steps the overlays show: those that state a verified fact, where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import attnlens
from attnlens import plots
from attnlens.errors import InputError
from attnlens.measures.inputs import find_region
from attnlens.reports.figure_inputs import Recorded
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.plots.figure import Figure
    from attnlens.recording.trace import Trace

MOST = 3
"""Overlays that are drawn."""


@dataclass(frozen=True)
class Look:
    """One overlay.

    Attributes
    ----------
    recorded
        The run.
    trace
        The same with its visual map.
    step
        Step that is shown.
    layer
        Layer that is shown; None for the mean.
    cells
        Visual tokens of the first image to outline.
    title, note, samples
        Words for the caption.
    """

    recorded: Recorded
    trace: Trace
    step: int
    layer: int | None
    cells: tuple[int, ...]
    title: str
    note: str
    samples: str

    def draw(self, width: float) -> Figure:
        """Draw it."""
        if self.trace.attrs["images"][0].get("frames"):
            return plots.frames(self.trace, self.step, item=0, layer=self.layer, width=width)
        image = self.recorded.path.with_suffix(".png")
        return plots.overlay(
            self.trace,
            self.step,
            image=image if image.is_file() else None,
            layer=self.layer,
            boxes=[_box(self.trace, cell) for cell in self.cells] or None,
            width=width,
        )

    def table(self) -> pd.DataFrame:
        """Return the mass of each visual token of the first image, in reading order."""
        data = _first_image(self.trace)
        tiles = data["visual_tile"].values
        return pd.DataFrame(
            {
                **({"tile": tiles} if tiles.max() > 0 else {}),
                "row": data["visual_row"].values,
                "column": data["visual_column"].values,
                "mass": _at(self.trace, self.step, self.layer),
                "outlined": [i in self.cells for i in range(data.sizes["visual"])],
            }
        )


def choose(runs: list[Recorded], region: str) -> list[Look]:
    """Choose up to three steps, each of another run, by a rule that does not look at the result.

    Parameters
    ----------
    runs
        Runs with the region and a visual map.
    region
        Name of the region of the verification.

    Returns
    -------
    list of Look
        If the truth of runs is known: the middle one of the facts that each verification states,
        in the layer with the most mass on the true visual tokens over the facts of all runs. If
        not: the step of the verification with the most mass on the image, mean over layers.

    Raises
    ------
    InputError
        If the truth of a run cannot be read.
    """
    known = [(one, facts) for one in runs if (facts := _facts(one))]
    if not known:
        return [_most_mass(one, region) for one in runs[:MOST]]
    shown: list[tuple[Recorded, Trace, list[tuple[int, tuple[int, ...]]]]] = []
    on_truth, hits = [], []
    for one, facts in known:
        trace = attnlens.Trace.load(one.path)
        for step, cells in facts:
            weights = _first_image(trace)["visual_map"].sel(step=step).values
            on_truth.append(weights[:, list(cells)].sum(1))
            hits.append(np.isin(weights.argmax(1), cells))
        if len(shown) < MOST:
            shown.append((one, trace, facts))
    place = int(np.mean(on_truth, axis=0).argmax())
    layer = int(shown[0][1].data["layer"].values[place])
    note = (
        "The box is that of the visual token of the object spoken of. Shown are the middle facts "
        f"of the first {len(shown)} runs, in the layer with most mass on the true visual token. "
        f"Over all {len(hits)} facts of {len(known)} run{'' if len(known) == 1 else 's'}, the "
        f"visual token with most mass in layer {layer} is the true one in "
        f"{np.mean(hits, axis=0)[place]:.1%}."
    )
    looks = []
    for one, trace, facts in shown:
        step, cells = facts[len(facts) // 2]
        token = one_line(str(trace.data["predicted_token"].sel(step=step).item()))
        title = f"Where the model looks when it states a verified fact, “{token}”"
        looks.append(Look(one, trace, step, layer, cells, title, note, _words(trace)))
    return looks


def _facts(one: Recorded) -> list[tuple[int, tuple[int, ...]]]:
    """Find the steps that predict a verified fact, with the visual tokens of its object.

    Empty if the truth is not known, or the model wrote something else.
    """
    truth = one.truth()
    if truth is None:
        return []
    try:
        tokens = [
            (
                str(t["text"]),
                bool(t["must_look"]) and t["section"] == "verification",
                t["visual_tokens"],
            )
            for t in truth["tokens"]
        ]
        listed = [
            (step, tuple(int(cell) for cell in cells))
            for step, (_, is_fact, cells) in enumerate(tokens)
            if is_fact
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(one.path.with_suffix('.json'))!r} is no truth of a run ({error!r}): give what "
            "Sample.truth(tokens) returns"
        ) from error
    if [text for text, _, _ in tokens] != one.trace.tokens[: len(tokens)]:
        return []
    return [(step, cells) for step, cells in listed if cells]


def _most_mass(one: Recorded, region: str) -> Look:
    trace = attnlens.Trace.load(one.path)
    span = find_region(trace, region)
    mass = _first_image(trace)["visual_map"].mean("layer").sum("visual").values
    step = span.start + int(mass[span.start : span.stop].argmax())
    note = f"Shown is the step of <{region}> with most mass on the image, mean over layers."
    title = "Where the model looks when it verifies"
    step = int(trace.data["step"].values[step])
    return Look(one, trace, step, None, (), title, note, _words(trace))


def _words(trace: Trace) -> str:
    return f"one step of one run of mode {trace.attrs.get('mode') or 'no mode'}"


def _first_image(trace: Trace) -> Any:
    return trace.data.isel(visual=trace.data["visual_image"].values == 0)


def _at(trace: Trace, step: int, layer: int | None) -> np.ndarray:
    values = _first_image(trace)["visual_map"].sel(step=step)
    return np.asarray((values.mean("layer") if layer is None else values.sel(layer=layer)).values)


def _box(trace: Trace, cell: int) -> tuple[float, float, float, float]:
    """Pixel box (left, top, right, bottom) of a visual token of the first image."""
    image = trace.attrs["images"][0]
    row, column = divmod(cell, image["columns"])
    wide, high = image["width"] / image["columns"], image["height"] / image["rows"]
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high
