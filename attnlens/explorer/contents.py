"""What a page shows of runs, as plain values and packed arrays; ``explorer.js`` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
MOST_OFF = 0.004
"""Of a sum of attention mass: what is off by more is said."""
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
    for one in runs:
        if not one.trace.data.sizes["step"]:
            raise InputError("the trace has no steps, so there is nothing to show")
    given = [_given(one, packer) for one in runs]  # what does not fit is refused before the work
    both = progress(zip(runs, given, strict=True), total=len(runs), description="measuring")
    contents = [_run(one, known, packer) for one, known in both]
    names = [n for n in DEFINITIONS if all(n in one["shares"] for one in contents)]
    if not names:
        reasons = dict.fromkeys(reason for one in contents for reason in one["lacks"])
        why = next((r for r in reasons if " has no value here: " in r), "")
        why = why.partition(" has no value here: ")[2] or "the traces share none"
        raise InputError(f"no definition of attention to the image can be shown: {why}")
    text = embedded(contents)
    room = largest - packer.size - len(text) - _OWN
    maps = _add_maps(contents, runs, room)
    if maps.total_error > MOST_OFF:
        for content in contents:
            if content["maps"]:
                content["lacks"].append(
                    "Weights of single visual tokens are rounded, so that their sum over an image "
                    f"is off by up to {maps.total_error:.2g}; the total, the curve and the masses "
                    "are not."
                )
    if maps.size > room:
        for content in contents:
            content["lacks"].append(
                f"The page is larger than {largest:,} bytes: its masses by head alone take more."
            )
    first = runs[0].trace.attrs
    return {
        "version": VERSION,
        "kind": "runs",
        "title": str(first.get("question") or first.get("model") or "attnlens"),
        "made_by": f"attnlens {__version__}",
        "definitions": [_definition(name) for name in names],
        "segments": list(SEGMENTS),
        "errors": {
            "mass": packer.error,
            "maps": maps.error,
            "maps_total": maps.total_error,
        },
        "runs": contents,
        "blobs": {**packer.blobs, **maps.blobs},
    }


def embedded(values: Any) -> str:
    """Write values as JSON that can stand inside an element of a page.

    Nothing in it can end the element or begin another, and no line end of JavaScript's is in it.
    """
    return json.dumps(values, allow_nan=False).translate(_ESCAPES)


_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def _definition(name: str) -> dict[str, Any]:
    one = DEFINITIONS[name]
    kept = ("name", "description", "formula", "source", "units", "long_name", "per_head")
    return {**{key: getattr(one, key) for key in kept}, "owner": one.step_owner}


def _given(one: Shown, packer: Packer) -> dict[str, Any]:
    """Pack what is known besides the trace, and refuse what does not fit it."""
    pictures, lacks = pictures_of(one.trace.data, one.images, packer)
    truth, missing = _truth(one)
    return {
        "looking": _looking(one, packer),
        "pictures": pictures,
        "truth": truth,
        "dependence": _dependence(one, packer),
        "lacks": lacks + missing,
    }


def _run(one: Shown, known: dict[str, Any], packer: Packer) -> dict[str, Any]:
    trace = one.trace
    data, attrs = trace.data, trace.attrs
    answer = final_answer(trace.text)
    special = set(attrs.get("special_token_ids", ()))
    shares, lacks = _shares(data, packer, include_copied=False)
    mass = packer.quantised(data["mass"].values, (1, 2, 3))
    copied = int(data["keys"].sel(segment="copied").max()) > 0
    lacks += known["lacks"]
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
    steps = data.sizes["step"]
    return {
        **known,
        "name": one.name,
        **{key: str(attrs.get(key) or "") for key in ("model", "mode", "question")},
        "answer": answer,
        "expected": one.expected,
        "right": None if one.expected is None else judge(answer, one.expected).right,
        "cut_off": trace.cut_off,
        "steps": data["step"].values.tolist(),
        "query": _texts(data["query_token"].values) if "query_token" in data else [""] * steps,
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
        "without_sink": packer.exact(
            mean_of_known(_without_sink(data["mass"].values).swapaxes(2, 3))
        ),
        "shares": shares,
        "shares_with_copied": _shares(data, packer, include_copied=True)[0] if copied else None,
        "split": _split(data, packer),
        "maps": None,
        "lacks": lacks,
    }


def _without_sink(mass: np.ndarray) -> np.ndarray:
    """Mass [..., segment] of what is left without the sink; NaN where nothing is, and at the sink.

    It is kept exactly, as a mean over heads: of single heads, eight bits beside a large sink would
    leave too little.
    """
    sink = SEGMENTS.index("sink")
    rest = np.delete(mass, sink, -1).sum(-1, keepdims=True, dtype=np.float32)
    found = np.divide(mass, rest, where=rest > 0, out=np.full_like(mass, np.nan))
    found[..., sink] = np.nan
    return found


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
    lacking = [name for name in DEPENDENCE if name not in one.dependence]
    if lacking:
        raise InputError(f"dependence= has no {lacking[0]}: give what attnlens.dependence returned")
    values = {
        name: packer.exact(one.dependence[name].transpose("reference", "step").values)
        for name in DEPENDENCE
    }
    return {"references": references, **values}


def _truth(one: Shown) -> tuple[list[dict[str, Any]], list[str]]:
    """Boxes of what tokens name, as fractions of the first picture, and what is missing."""
    if one.truth is None:
        return [], []
    records = one.trace.attrs.get("images") or [{}]
    if "width" not in records[0]:
        raise InputError("truth= was given, and the trace does not know the size of its image")
    size = np.array([records[0]["width"], records[0]["height"]] * 2, dtype=float)
    lacks = []
    pairs: Sequence[Any] = ()
    if isinstance(one.truth, Mapping):
        pairs, known = _named(one.truth, one.trace.tokens)
        if known < len(one.truth["tokens"]):
            lacks.append(
                f"What tokens name is known of the first {known} only, since the answer then "
                "leaves the true one."
            )
    else:
        pairs = one.truth
    steps = set(one.trace.data["step"].values.tolist())
    found = []
    for pair in pairs:
        try:
            step, box = pair
            fractions = np.asarray(box, dtype=float) / size
            fits = step in steps and fractions.shape == (4,) and np.isfinite(fractions).all()
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(
                f"truth= has {pair!r}: give pairs of a step of the trace and (left, top, right, "
                "bottom) in pixels"
            )
        found.append({"step": int(step), "picture": 0, "box": fractions.tolist(), "label": ""})
    return found, lacks


def _named(
    truth: Mapping[str, Any], spelled: Sequence[str]
) -> tuple[list[tuple[int, Sequence[float]]], int]:
    """Return steps and boxes of what ``Sample.truth(tokens)`` returned, and how many tokens agree.

    The truth of a token holds as long as all tokens up to it are those of the answer.
    """
    try:
        tokens = [(str(token["text"]), token["box"]) for token in truth["tokens"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "truth= is no truth of tokens: give what Sample.truth(tokens) returned"
        ) from error
    pairs = enumerate(zip(tokens, spelled, strict=False))
    known = next(
        (i for i, ((text, _), own) in pairs if text != own), min(len(tokens), len(spelled))
    )
    boxes = enumerate(box for _, box in tokens[:known])
    return [(step, box) for step, box in boxes if box is not None], known


# Maps of visual tokens


@dataclass(frozen=True)
class _Map:
    """A map that is not packed yet."""

    run: int
    kind: str
    layer: int | None
    head: int | None
    values: xr.DataArray

    def weights(self, every: int = 1) -> np.ndarray:
        """Weight of each visual token, float [step, visual]; of few steps, all are given."""
        steps = slice(None, None, every if len(self.values) > 10 * every else 1)
        chosen = self.values[steps]
        return (chosen.mean("layer") if "layer" in chosen.dims else chosen).values


def _add_maps(contents: list[dict[str, Any]], runs: Sequence[Shown], room: int) -> Packer:
    """Pack the maps of all runs as finely as there is room, and say what is left out."""
    maps = [one for place, run in enumerate(runs) for one in _maps(run.trace.data, place)]
    packer, kept, entries = _packed(maps, room)
    for place, (run, one) in enumerate(zip(runs, contents, strict=True)):
        data = run.trace.data
        own = [entry for found, entry in zip(kept, entries, strict=True) if found.run == place]
        if "visual_map" not in data:
            one["lacks"].append(
                "There is no map of visual tokens: record with visual_map=True to see where in the "
                "image each step looks."
            )
        if "visual_map_by_head" not in data:
            one["lacks"].append(
                "There is no map of a single head: record with map_heads=[(layer, head), ...]."
            )
        if len(own) < sum(found.run == place for found in maps):
            one["lacks"].append(
                "Maps of single layers and heads are left out, since the page would be too large."
            )
        if own:
            one["maps"] = {"visual": int(data.sizes["visual"]), "sources": own}
    return packer


def _packed(maps: Sequence[_Map], room: int) -> tuple[Packer, Sequence[_Map], list[dict[str, Any]]]:
    """Pack maps with the most levels that fit; of all maps, else of the mean alone."""
    means = [one for one in maps if one.kind == "mean"]
    for kept in (maps, means):
        for levels in _COARSER[_finest(kept, room) :]:
            packer = Packer(prefix="m")
            shown = progress(kept, total=len(kept), description="packing")
            entries = [_entry(one, packer, levels) for one in shown]
            if packer.size <= room:
                return packer, kept, entries
    packer = Packer(prefix="m")  # too large even so
    return packer, means, [_entry(one, packer, _COARSER[-1]) for one in means]


def _entry(one: _Map, packer: Packer, levels: int) -> dict[str, Any]:
    weights = one.weights()
    return {
        "kind": one.kind,
        "layer": one.layer,
        "head": one.head,
        "weights": packer.quantised(weights, (0,), levels),
        "total": packer.exact(weights.sum(-1)),
    }


def _maps(data: xr.Dataset, run: int) -> list[_Map]:
    found = []
    if "visual_map" in data:
        of_layers = data["visual_map"].transpose("step", "layer", "visual")
        found.append(_Map(run, "mean", None, None, of_layers))
        for place, layer in enumerate(data["layer"].values.tolist()):
            found.append(_Map(run, "layer", layer, None, of_layers[:, place]))
    if "visual_map_by_head" in data:
        of_heads = data["visual_map_by_head"].transpose("step", "mapped", "visual")
        pairs = zip(of_heads["mapped_layer"].values, of_heads["mapped_head"].values, strict=True)
        for place, (layer, head) in enumerate(pairs):
            found.append(_Map(run, "head", int(layer), int(head), of_heads[:, place]))
    return found


_COARSER = (LEVELS, 127, 63, 47, 31, 23, 15)
_SAMPLED = 16
_OWN = 150_000
"""Bytes of the page's script and style, and of what is added to the packed arrays, about."""


def _finest(maps: Sequence[_Map], room: int) -> int:
    """Return the place among ``_COARSER`` with which maps seem to fit, by every sixteenth step.

    Steps that are far apart repeat less than neighbours, so that the guess is seldom too fine.
    """
    samples = [one.weights(every=_SAMPLED) for one in maps]
    whole = sum(one.values.shape[0] / max(len(s), 1) for one, s in zip(maps, samples, strict=True))
    whole /= max(len(maps), 1)
    for place, levels in enumerate(_COARSER):
        sample = Packer()
        for weights in samples:
            sample.quantised(weights, (0,), levels)
        if sample.size * whole <= room:
            return place
    return len(_COARSER)
