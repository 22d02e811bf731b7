"""What a page shows of runs, as plain values and packed arrays; ``explorer.js`` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens._version import __version__
from attnlens.answers import final_answer, judge
from attnlens.errors import InputError
from attnlens.explorer.packing import LEVELS, Packer
from attnlens.explorer.pictures import pictures_of
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.share import visual_share
from attnlens.measures.theorems.log_odds import TERMS, log_odds
from attnlens.progress import progress
from attnlens.segments import SEGMENTS
from attnlens.text import shortened

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.recording.trace import Trace

VERSION = 1
"""Of what the page's script reads."""
LARGEST = 25_000_000
"""Most bytes of a page."""
LONGEST_TOKEN = 2_000
"""Characters of a token; the middle of longer ones is left out."""
DEPENDENCE = ("kl", "hellinger", "log_ratio")
"""What a page shows of ``attnlens.dependence``."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run that a page shows, and what is known of it.

    Attributes
    ----------
    trace
        The record of the generation.
    name
        Its name beside others on the page; empty for one alone.
    images
        The images and videos of the prompt, as ``vlm.prompt`` takes them; None for the files that
        were recorded.
    dependence
        From ``attnlens.dependence``.
    expected
        The true answer.
    truth
        Where the object is that a token names: what ``attnlens.testbed.Sample.truth(tokens)``
        returns, or pairs of a step and a box (left, top, right, bottom in pixels of the first
        image). The step is the one that predicts the token.
    looking
        From ``attnlens.lenses.looking_heads``.
    """

    trace: Trace
    name: str = ""
    images: Sequence[Any] | None = None
    dependence: xr.Dataset | None = None
    expected: str | None = None
    truth: Mapping[str, Any] | Sequence[tuple[int, Sequence[float]]] | None = None
    looking: xr.Dataset | None = None


def page_contents(runs: Sequence[Shown], *, largest: int = LARGEST) -> dict[str, Any]:
    """Collect all that a page shows.

    Masses and maps of visual tokens are kept in 8 bits: the largest value of each head and segment,
    or of each step of a map, has 254 levels. A page that would be too large has maps of fewer
    levels, then none of single layers and heads.

    Parameters
    ----------
    runs
        The runs, the one that others are compared with first.
    largest
        Most bytes of the packed arrays.

    Returns
    -------
    dict
        Plain values, for JSON.

    Raises
    ------
    InputError
        If no definition has a value in every run, or what is given with a trace does not fit it.
    """
    packer = Packer()
    contents = [
        _run(one, packer) for one in progress(runs, total=len(runs), description="measuring")
    ]
    without_sink = max(one.pop("error_without_sink") for one in contents)
    names = [n for n in DEFINITIONS if all(n in one["shares"] for one in contents)]
    if not names:
        raise InputError("no definition of attention to the image has a value in these traces")
    maps = Packer(prefix="m")
    _add_maps(contents, runs, maps, largest - packer.size - len(json.dumps(contents)) - _OWN)
    first = runs[0].trace.attrs
    return {
        "version": VERSION,
        "kind": "runs",
        "title": str(first.get("question") or first.get("model") or "attnlens"),
        "made_by": f"attnlens {__version__}",
        "definitions": [_definition(name) for name in names],
        "segments": list(SEGMENTS),
        "errors": {"mass": packer.error, "maps": maps.error, "without_sink": without_sink},
        "runs": contents,
        "blobs": {**packer.blobs, **maps.blobs},
    }


def _definition(name: str) -> dict[str, Any]:
    one = DEFINITIONS[name]
    kept = ("name", "description", "formula", "source", "units", "long_name", "per_head")
    return {**{key: getattr(one, key) for key in kept}, "owner": one.step_owner}


def _run(one: Shown, packer: Packer) -> dict[str, Any]:
    trace = one.trace
    data, attrs = trace.data, trace.attrs
    answer = final_answer(trace.text)
    special = set(attrs.get("special_token_ids", ()))
    shares, lacks = _shares(data, packer, include_copied=False)
    mass = packer.quantised(data["mass"].values, (1, 2, 3))
    exact = _without_sink(data["mass"].values)
    copied = int(data["keys"].sel(segment="copied").max()) > 0
    pictures, missing = pictures_of(data, one.images, packer)
    lacks += missing
    if one.expected is None:
        lacks.append("Whether the answer is right is not known: give the true one (expected=).")
    if one.dependence is None:
        lacks.append(
            "Whether the answer needs the image was not measured: attnlens.dependence does so, and "
            "dependence= shows it."
        )
    if one.looking is None:
        lacks.append(
            "Heads have no looking score: attnlens.lenses.looking_heads finds it, and looking= "
            "shows it."
        )
    return {
        "name": one.name,
        **{key: str(attrs.get(key) or "") for key in ("model", "mode", "question")},
        "answer": answer,
        "expected": one.expected,
        "right": None if one.expected is None else judge(answer, one.expected).right,
        "cut_off": trace.cut_off,
        "steps": data["step"].values.tolist(),
        "query": _texts(data["query_token"].values) if "query_token" in data else [""] * len(data),
        "predicted": _texts(trace.tokens),
        "special": [
            place
            for place, token in enumerate(data["predicted_token_id"].values.tolist())
            if token in special
        ],
        "regions": [asdict(region) for region in trace.regions],
        "layers": data["layer"].values.tolist(),
        "heads": int(data.sizes["head"]),
        "events": [
            {
                "step": int(event["step"]),
                "name": str(event["intervention"]),
                "inserted": int(event.get("inserted", 0)),
            }
            for event in attrs.get("interventions", ())
        ],
        "keys": packer.exact(data["keys"].values, "i4"),
        "mass": mass,
        "without_sink": packer.exact(mean_of_known(exact.swapaxes(2, 3))),
        "error_without_sink": _largest_difference(exact, _without_sink(packer.unpacked(mass))),
        "shares": shares,
        "shares_with_copied": _shares(data, packer, include_copied=True)[0] if copied else None,
        "split": _split(data, packer),
        "looking": _looking(one, packer),
        "maps": None,
        "pictures": pictures,
        "truth": _truth(one),
        "dependence": _dependence(one, packer),
        "lacks": lacks,
    }


def _without_sink(mass: np.ndarray) -> np.ndarray:
    """Mass [..., segment] of what is left without the sink; NaN where nothing is, and at the sink.

    The denominator is the sum over the other segments, of which each has a scale of its own: of
    what is left beside a large sink, one minus the sink would be off by far more.
    """
    sink = SEGMENTS.index("sink")
    rest = np.delete(mass, sink, -1).sum(-1, keepdims=True, dtype=np.float32)
    found = np.divide(mass, rest, where=rest > 0, out=np.full_like(mass, np.nan))
    found[..., sink] = np.nan
    return found


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference where both are known."""
    return float(np.nanmax(np.abs(one - other), initial=0))


def _texts(values: Sequence[str] | np.ndarray) -> list[str]:
    return [shortened(str(value), LONGEST_TOKEN) for value in values]


def _shares(
    data: xr.Dataset, packer: Packer, *, include_copied: bool
) -> tuple[dict[str, Any], list[str]]:
    """Attention to the image under each definition that has a value, by layer and by head."""
    found: dict[str, Any] = {}
    lacks = []
    for name, definition in DEFINITIONS.items():
        if include_copied and not definition.counts_copied:
            continue

        def measure(reduction: str, name: str = name) -> np.ndarray:
            share = visual_share(data, name, reduction=reduction, include_copied=include_copied)
            return share.reindex(step=data["step"]).values

        try:
            by_layer = measure("layer")
            by_head = measure("none") if definition.per_head else None
        except InputError as error:
            lacks.append(f"{name} has no value here: {error}")
            continue
        found[name] = {
            "by_layer": packer.exact(by_layer),
            "by_head": None if by_head is None else packer.quantised(by_head, (1, 2)),
        }
    return found, lacks


def _split(data: xr.Dataset, packer: Packer) -> dict[str, Any] | None:
    """Log-odds of visual mass, and its two terms, mean over heads."""
    try:
        found = log_odds(data)
    except InputError:  # all visual keys are hidden, or were not counted
        return None
    shape = found["log_odds"].shape
    terms = {}
    for term in TERMS:
        values = found[term].values
        by_head = values if values.ndim == 3 else np.broadcast_to(values[:, None, None], shape)
        known = np.where(np.isfinite(by_head), by_head, np.nan)
        terms[term] = packer.exact(mean_of_known(known))
    return terms


def _looking(one: Shown, packer: Packer) -> dict[str, Any] | None:
    if one.looking is None:
        return None
    data = one.trace.data
    try:
        change = one.looking["change"].sel(layer=data["layer"].values, head=data["head"].values)
    except KeyError as error:
        raise InputError(
            "looking= is not of the model of the trace: give what attnlens.lenses.looking_heads "
            "returned for it"
        ) from error
    values = -change.transpose("layer", "head").values
    return {"label": "loss of log-probability (nats)", "values": packer.exact(values)}


def _dependence(one: Shown, packer: Packer) -> dict[str, Any] | None:
    if one.dependence is None:
        return None
    data = one.trace.data
    own = data["predicted_token_id"].values
    there = one.dependence.get("predicted_token_id")
    if there is None or not np.array_equal(there.values, own):
        raise InputError("dependence= is of another answer than the trace: give that of this one")
    references = [str(name) for name in one.dependence["reference"].values]
    values = {name: packer.exact(one.dependence[name].values) for name in DEPENDENCE}
    return {"references": references, **values}


def _truth(one: Shown) -> list[dict[str, Any]]:
    """Boxes of what tokens name, as fractions of the first picture."""
    if one.truth is None:
        return []
    records = one.trace.attrs.get("images") or [{}]
    if "width" not in records[0]:
        raise InputError("truth= was given, and the trace does not know the size of its image")
    size = np.array([records[0]["width"], records[0]["height"]] * 2, dtype=float)
    pairs: Sequence[Any] = one.truth if not isinstance(one.truth, Mapping) else _named(one)
    steps = set(one.trace.data["step"].values.tolist())
    found = []
    for step, box in pairs:
        fractions = np.asarray(box, dtype=float) / size
        if step not in steps or fractions.shape != (4,):
            raise InputError(
                f"truth= has {(step, box)!r}: give a step of the trace with (left, top, right, "
                "bottom) in pixels"
            )
        found.append({"step": int(step), "picture": 0, "box": fractions.tolist(), "label": ""})
    return found


def _named(one: Shown) -> list[tuple[int, Sequence[float]]]:
    """Return steps and boxes of what ``Sample.truth(tokens)`` returned."""
    try:
        tokens = [(str(token["text"]), token["box"]) for token in one.truth["tokens"]]  # type: ignore[call-overload,index]
    except (KeyError, TypeError) as error:
        raise InputError(
            "truth= is no truth of tokens: give what Sample.truth(tokens) returned"
        ) from error
    if [text for text, _ in tokens] != one.trace.tokens[: len(tokens)]:
        return []  # the model wrote something else, of which no truth is known
    return [(step, box) for step, (_, box) in enumerate(tokens) if box is not None]


# Maps of visual tokens


@dataclass(frozen=True)
class _Map:
    """A map that is not packed yet: ``weights()`` gives float [step, visual]."""

    run: int
    kind: str
    layer: int | None
    head: int | None
    weights: Callable[[], np.ndarray]


def _add_maps(
    contents: list[dict[str, Any]], runs: Sequence[Shown], packer: Packer, room: int
) -> None:
    """Pack the maps of all runs as finely as there is room, and say what is left out."""
    maps = [one for place, run in enumerate(runs) for one in _maps(run.trace.data, place)]
    kept = maps
    levels = _levels(maps, room)
    if levels is None:
        kept = [one for one in maps if one.kind == "mean"]
        levels = _levels(kept, room) or _COARSER[-1]
    for place, (run, one) in enumerate(zip(runs, contents, strict=True)):
        data = run.trace.data
        if "visual_map" not in data:
            one["lacks"].append(
                "There is no map of visual tokens: record with visual_map=True to see where in the "
                "image each step looks."
            )
        elif len(kept) < len(maps):
            one["lacks"].append(
                "Maps of single layers and heads are left out, since the page would be too large."
            )
        if "visual_map_by_head" not in data:
            one["lacks"].append(
                "There is no map of a single head: record with map_heads=[(layer, head), ...]."
            )
        own = [one for one in kept if one.run == place]
        if own:
            one["maps"] = {"visual": int(data.sizes["visual"]), "sources": []}
    for found in progress(kept, total=len(kept), description="packing"):
        contents[found.run]["maps"]["sources"].append(
            {
                "kind": found.kind,
                "layer": found.layer,
                "head": found.head,
                "weights": packer.quantised(found.weights(), (0,), levels),
                "total": packer.exact(found.weights().sum(-1)),
            }
        )


def _maps(data: xr.Dataset, run: int) -> list[_Map]:
    found = []
    if "visual_map" in data:
        of_layers = data["visual_map"].transpose("step", "layer", "visual")
        found.append(_Map(run, "mean", None, None, lambda: of_layers.mean("layer").values))
        for place, layer in enumerate(data["layer"].values.tolist()):
            weights = of_layers[:, place]
            found.append(_Map(run, "layer", layer, None, partial(_values, weights)))
    if "visual_map_by_head" in data:
        of_heads = data["visual_map_by_head"].transpose("step", "mapped", "visual")
        pairs = zip(of_heads["mapped_layer"].values, of_heads["mapped_head"].values, strict=True)
        for place, (layer, head) in enumerate(pairs):
            weights = of_heads[:, place]
            found.append(_Map(run, "head", int(layer), int(head), partial(_values, weights)))
    return found


def _values(weights: xr.DataArray) -> np.ndarray:
    return weights.values


_COARSER = (LEVELS, 127, 63, 47, 31, 23, 15)
_SAMPLED = 16
_OWN = 150_000
"""Bytes of the page's script and style, and of what is added to the packed arrays, about."""


def _levels(maps: Sequence[_Map], room: int) -> int | None:
    """Return the most levels with which the maps fit, judged by every sixteenth step; or None."""
    samples = []
    for one in maps:
        weights = one.weights()
        samples.append(weights[::_SAMPLED] if len(weights) > 10 * _SAMPLED else weights)
    whole = sum(one.weights().size for one in maps) / max(sum(one.size for one in samples), 1)
    for levels in _COARSER:
        sample = Packer()
        for weights in samples:
            sample.quantised(weights, (0,), levels)
        if sample.size * whole <= room:
            return levels
    return None
