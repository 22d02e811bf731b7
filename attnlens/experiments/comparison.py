"""The runs of ``attnlens.recover``: one prompt untouched and under each intervention."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import xarray as xr

from attnlens.answers import as_number, final_answer, is_changed, judge
from attnlens.experiments.force import forced
from attnlens.experiments.recovery import UNTOUCHED
from attnlens.experiments.run import run
from attnlens.interventions.base import Intervention, Nothing
from attnlens.measures.definitions import DEFINITIONS, Definition
from attnlens.measures.recovery import divergences, mean_from, mean_of_known
from attnlens.measures.share import visual_segments
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.trace import Trace

DETAILS = ("head", "layer", "step")
"""How finely rises are kept."""

CLEAR_MARGIN = 1e-2
"""Least margin (nats) by which a token counts as the most likely: far above rounding."""

_STEP, _LAYER, _HEAD = ("step",), ("step", "layer"), ("step", "layer", "head")
_AXES: dict[str, tuple[str, ...]] = {
    "kl": _STEP,
    "hellinger": _STEP,
    "visual": _HEAD,
    "copied": _HEAD,
    "free_rise": ("definition",),
    "free_rise_with_copied": ("definition",),
    **{f"share{c}": ("definition", *_STEP) for c in ("", "_with_copied")},
    **{f"share_by_layer{c}": ("definition", *_LAYER) for c in ("", "_with_copied")},
    **{f"share_by_head{c}": ("definition", *_HEAD) for c in ("", "_with_copied")},
}
_TEXTS = ("answer", "text", "never_fired")


@dataclass(frozen=True)
class Run:
    """One generation of one prompt, free or forced."""

    trace: Trace
    log_probabilities: np.ndarray | None
    """[steps, vocabulary], where they were kept."""
    seconds: float

    @cached_property
    def by_definition(self) -> dict[bool, list[np.ndarray | None]]:
        """Visual share by definition, with inserted tokens counted as image (True) or not.

        [step, layer, head], or [step, layer] in definitions that reduce heads themselves; NaN at
        steps, and None in definitions, where it is not defined. Not labelled as by
        ``visual_share``, since labels take most of its time.
        """
        needed = {"mass", "keys", "hidden", "visual_nonzero"}
        data = self.trace.data[[v for v in self.trace.data.data_vars if v in needed]]
        data = data.reset_coords(drop=True)
        own: list[np.ndarray | None]
        own = [_compute(data, definition, False) for definition in DEFINITIONS.values()]
        copied = bool((data["keys"].sel(segment="copied") > 0).any())
        counted = [
            (_compute(data, definition, True) if copied else values)
            if definition.counts_copied
            else None
            for definition, values in zip(DEFINITIONS.values(), own, strict=True)
        ]
        return {False: own, True: counted}

    def shares(self, axes: str, include_copied: bool) -> np.ndarray:
        """Visual share in every definition, [definition, step] and the axes that are kept.

        ``axes`` is one of ``DETAILS``: the last axis that is kept. Heads are averaged first.
        """
        sizes = self.trace.data.sizes
        kept = {"step": (), "layer": ("layer",), "head": ("layer", "head")}[axes]
        shape = (sizes["step"], *(sizes[a] for a in kept))
        table = np.full((len(DEFINITIONS), *shape), np.nan)
        for row, found in enumerate(self.by_definition[include_copied]):
            values = found
            if values is None or (axes == "head" and values.ndim < 3):
                continue
            while values.ndim > len(shape):
                values = mean_of_known(values)
            table[row] = values
        return table


def _compute(data: xr.Dataset, definition: Definition, include_copied: bool) -> np.ndarray:
    values = definition.compute(data, visual_segments(definition, data, include_copied))
    missing = data.sizes["step"] - len(values)
    return np.pad(values, [(missing, 0), *[(0, 0)] * (values.ndim - 1)], constant_values=np.nan)


@dataclass(frozen=True)
class CompareSettings:
    """How the runs of a prompt are made and compared; as in ``attnlens.recover``, checked."""

    max_new_tokens: int
    detail: str = "head"
    reuse: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: {"do_sample": False})


def warm_up(vlm: VLM, prompt: Prompt) -> None:
    """Generate two tokens: the first run is slower than the others."""
    _generate(vlm, prompt, None, CompareSettings(max_new_tokens=2))


def compare_runs(
    vlm: VLM,
    prompt: Prompt,
    interventions: Mapping[str, Intervention],
    truth: str | None,
    settings: CompareSettings,
    before_run: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, dict[str, Any]], Trace]:
    """Run one prompt untouched and under each intervention; ``truth`` is the answer, if known.

    Returns values and arrays by name for each run, ``untouched`` first (see ``Recovery``), and the
    untouched run's trace.
    """
    before_run()
    free_untouched = _generate(vlm, prompt, None, settings)
    ids = free_untouched.trace.data["predicted_token_id"].values.tolist()
    # passes like those of the twins, so that rounding is the same on both sides
    untouched = _force(vlm, prompt, ids, Nothing())
    compare = partial(_compare, free_untouched, untouched, truth=truth, detail=settings.detail)
    rows = {UNTOUCHED: compare(free_untouched, untouched)}
    for name, intervention in interventions.items():
        before_run()
        twin = _force(vlm, prompt, ids, intervention)
        before_run()
        forces_text = any(part.follows for part in intervention.parts)
        reused = settings.reuse and not forces_text and _predicts(twin, ids)
        free = twin if reused else _generate(vlm, prompt, intervention, settings)
        rows[name] = compare(free, twin)
        if reused:  # a forced pass takes another time than a generation
            rows[name]["seconds"] = float("nan")
    return rows, free_untouched.trace


def _generate(
    vlm: VLM, prompt: Prompt, intervention: Intervention | None, settings: CompareSettings
) -> Run:
    start = time.perf_counter()
    trace = run(
        vlm,
        prompt,
        settings.max_new_tokens,
        intervention,
        seed=settings.seed,
        **{"visual_map": False, **settings.options},
    )
    return Run(trace, None, time.perf_counter() - start)


def _force(vlm: VLM, prompt: Prompt, ids: list[int], intervention: Intervention) -> Run:
    start = time.perf_counter()
    trace, log_probabilities = forced(vlm, prompt, ids, intervention)
    return Run(trace, log_probabilities.numpy(), time.perf_counter() - start)


def _predicts(twin: Run, ids: list[int]) -> bool:
    """Whether greedy decoding under the intervention would give these very tokens."""
    assert twin.log_probabilities is not None
    best = np.sort(np.partition(twin.log_probabilities, -2, axis=-1)[:, -2:], axis=-1)
    clear = best[:, 1] - best[:, 0] > CLEAR_MARGIN
    return bool(clear.all() and (twin.log_probabilities.argmax(-1) == ids).all())


def _compare(
    free_untouched: Run, untouched: Run, free: Run, forced: Run, truth: str | None, detail: str
) -> dict[str, Any]:
    """Return all that is kept of one intervention in one prompt, by name."""
    events = free.trace.attrs.get("interventions", [])
    answer = final_answer(free.trace.text)
    before = final_answer(free_untouched.trace.text)
    # a forced twin that stands for the free run has the untouched run's text
    cut_off = (free if free.trace.attrs.get("generation") else free_untouched).trace.cut_off
    row: dict[str, Any] = {
        "answer": "" if answer is None else answer,
        "text": free.trace.text,
        "never_fired": "\n".join(free.trace.attrs.get("never_fired", [])),
        "answer_changed": as_number(is_changed(answer, before)),
        "right": as_number(None if truth is None else judge(answer, truth).right),
        "cut_off": float("nan") if cut_off is None else float(cut_off),
        "steps": float(free.trace.data.sizes["step"]),
        "seconds": free.seconds,
        "inserted": float(sum(e["inserted"] for e in events)),
        "fired": float(len(events)),
        "first_step": float("nan"),
    }
    first = min((int(e["step"]) for e in events), default=None)
    for name, include_copied in (("", False), ("_with_copied", True)):
        row[f"free_rise{name}"] = _free_rise(free_untouched, free, first, include_copied)
    acted = forced.trace.attrs.get("interventions", [])
    row["first_step"] = float(min(e["step"] for e in acted)) if acted else float("nan")
    assert untouched.log_probabilities is not None
    assert forced.log_probabilities is not None
    row["kl"], row["hellinger"] = divergences(untouched.log_probabilities, forced.log_probabilities)
    for event in acted:  # predicted before the tag was known
        for name in ("kl", "hellinger"):
            row[name][event["step"] : event["known_at"]] = np.nan
    for name, include_copied in (("", False), ("_with_copied", True)):
        row[f"share{name}"] = forced.shares("step", include_copied)
        if detail != "step":
            row[f"share_by_layer{name}"] = forced.shares("layer", include_copied)
        if detail == "head":
            row[f"share_by_head{name}"] = forced.shares("head", include_copied)
    if detail == "head":
        mass = forced.trace.data["mass"]
        row["visual"] = mass.sel(segment="visual").values
        row["copied"] = mass.sel(segment="copied").values
    return row


def _free_rise(untouched: Run, free: Run, first: int | None, include_copied: bool) -> np.ndarray:
    """Mean share of the free run from a step on, minus the untouched run's, by definition."""
    if first is None:
        return np.full(len(DEFINITIONS), np.nan)
    after, before = (
        np.array([mean_from(curve, first) for curve in one.shares("step", include_copied)])
        for one in (free, untouched)
    )
    return after - before


def to_dataset(samples: list[dict[str, dict[str, Any]]], vlm: VLM) -> xr.Dataset:
    """Put into arrays what ``compare_runs`` returns for each prompt."""
    runs = list(samples[0])
    steps = max(len(rows[UNTOUCHED]["kl"]) for rows in samples)
    variables: dict[str, Any] = {}
    for name, first in samples[0][UNTOUCHED].items():
        if name in _TEXTS:
            texts = [[rows[run][name] for run in runs] for rows in samples]
            variables[name] = (("sample", "run"), np.array(texts, dtype=str))
        else:
            values = [[rows[run].get(name) for run in runs] for rows in samples]
            dims = _AXES.get(name, ())
            variables[name] = (
                ("sample", "run", *dims),
                _stack(values, dims, np.shape(first), steps),
            )
    per_token = parts_of(vlm.model).cache_bytes_per_token
    data = xr.Dataset(
        variables,
        {"run": runs, "definition": list(DEFINITIONS), "step": np.arange(steps)},
        {"model": vlm.name, "cache_bytes_per_token": per_token},
    )
    data["cache_bytes"] = data["inserted"] * per_token
    untouched = data.sel(run=UNTOUCHED, drop=True)
    for by in ("", "_by_layer", "_by_head"):
        for counted in ("", "_with_copied"):
            share = f"share{by}{counted}"
            if share in data:
                # without insertions both counts are the same
                data[f"rise{by}{counted}"] = data[share] - untouched[share]
    if "visual" in data:
        data["mass_rise"] = data["visual"] - untouched["visual"]
        data["mass_rise_with_copied"] = data["mass_rise"] + data["copied"]
    return data


def _stack(
    values: list[list[Any]], dims: tuple[str, ...], shape: tuple[int, ...], steps: int
) -> np.ndarray:
    """One array [sample, run, ...], NaN where there is no value and after the last step."""
    sizes = [steps if d == "step" else size for d, size in zip(dims, shape, strict=True)]
    dtype = np.float32 if "layer" in dims else np.float64
    table = np.full((len(values), len(values[0]), *sizes), np.nan, dtype)
    for i, of_sample in enumerate(values):
        for j, value in enumerate(of_sample):
            if value is not None:
                here = table[i, j, ...]  # a view, also of a single number
                here[tuple(slice(0, size) for size in np.shape(value))] = value
    return table
