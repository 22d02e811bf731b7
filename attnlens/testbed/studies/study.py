"""Does the testbed look where it must? Attention compared with the truth, on held-out scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures import decay, refocus, visual_share
from attnlens.measures.inputs import owned_token
from attnlens.measures.statistics import with_interval
from attnlens.progress import progress
from attnlens.recording.record import record
from attnlens.testbed.studies.forced_pass import (
    HIDDEN_FROM,
    ForcedPass,
    forced_pass,
    states_size,
)
from attnlens.testbed.studies.scoring import CHANCE, CHANCE_OF_BOTH, prompt_of
from attnlens.testbed.world.samples import Sample, held_out_sample, token_truth
from attnlens.testbed.world.scenes import MARKS, SIZES

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.recording.trace import Trace

SECTIONS = ("description", "reasoning", "verification", "conclusion")
DEFINITIONS = ("look-back", "mass")
BATCH = 12
"""Answers that are generated together."""


def study(
    vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back", steps: int | None = None
) -> dict[str, Any]:
    """Compare attention with the truth over held-out scenes.

    Parameters
    ----------
    vlm, scenes, seed
        A testbed model; how many and which held-out scenes.
    mode
        ``cot``, ``back`` or ``reflection`` (nothing is inserted).
    steps
        Ask only chains of so many steps, for long reasoning; by default questions of all kinds.

    Returns
    -------
    dict
        ``responses_true``, ``sections``, ``decay``, ``refocus``: from recorded greedy generations;
        see ``recorded_shares``. ``looking``, ``pointing``, ``hiding``: from passes over the true
        answers; see ``looking``, ``pointing``, ``facts_without_image``.

    Raises
    ------
    InputError
        If the mode has no description, or the number of scenes or steps is out of range.
    """
    if mode not in ("cot", "back", "reflection") or scenes < 2:
        raise InputError(
            f"a study of {scenes} scenes in mode {mode!r}: "
            "give at least 2, in 'cot', 'back' or 'reflection'"
        )
    samples = [held_out_sample(seed, i, mode, steps=steps) for i in range(scenes)]
    passes = [forced_pass(vlm, s) for s in progress(samples, description=f"forcing {mode}")]
    table = {
        "mode": mode,
        "scenes": scenes,
        "seed": seed,
        **recorded_shares(vlm, samples),
        "looking": {section: looking(passes, section) for section in ("all", *SECTIONS)},
        "pointing": {
            "description": pointing(passes, "description"),
            "verification": pointing(passes, "verification"),
            "sizes": pointing(passes, "verification", tuple(SIZES)),
            "marks": pointing(passes, "verification", MARKS),
        },
    }
    if mode != "cot":
        table["hiding"] = facts_without_image(vlm, samples)
    return table


def recorded_shares(vlm: VLM, samples: list[Sample]) -> dict[str, Any]:
    """Measure visual share by section, decay and refocus over recorded greedy generations.

    Returns
    -------
    dict
        ``sections``: by definition and section, the mean over scenes of the mean visual share over
        the section's steps, with a 95% interval over scenes. A step belongs to the section of its
        query token or of its predicted token, depending on the definition. ``decay``: within the
        first ``<think>`` (not in mode ``reflection``). ``refocus``: rise inside the first
        verification. ``responses_true``: number of responses that are the true answer word for
        word. Others are left out, since the sections of their steps are not known.
    """
    traces, kept = [], []
    for start in progress(range(0, len(samples), BATCH), description="recording"):
        here = samples[start : start + BATCH]
        batch = vlm.batch([prompt_of(vlm, sample) for sample in here])
        true = vlm.tokenizer([s.answer for s in here], add_special_tokens=False)["input_ids"]
        with record(vlm, batch, visual_map=False) as recorder:
            # a longer answer than the true one is left out
            vlm.model.generate(**batch.inputs, max_new_tokens=max(map(len, true)) + 1)
        for sample, trace in zip(here, recorder.traces, strict=True):
            if trace.text == sample.answer:
                traces.append(trace)
                kept.append(sample)
    result: dict[str, Any] = {"responses_true": len(kept), "sections": {}}
    if not kept:
        return result
    for definition in DEFINITIONS:
        by_section: dict[str, list[float]] = defaultdict(list)
        for trace, sample in zip(traces, kept, strict=True):
            for section, value in _by_section(trace, sample, definition).items():
                by_section[section].append(value)
        result["sections"][definition] = {
            name: with_interval(by_section[name]) for name in SECTIONS if by_section[name]
        }
    mode = kept[0].mode
    if mode != "reflection":
        result["decay"] = {d: _brief(decay(traces, d, region="think")) for d in DEFINITIONS}
    if mode != "cot":
        region = "back" if mode == "back" else "reflection"
        result["refocus"] = {d: _brief(refocus(traces, d, region=region)) for d in DEFINITIONS}
    return result


def _brief(found: Any) -> dict[str, Any]:
    """Return a result without its lists, which have one entry per trace."""
    return {k: v for k, v in found.as_dict().items() if not isinstance(v, list)}


def _by_section(trace: Trace, sample: Sample, definition: str) -> dict[str, float]:
    share = visual_share(trace, definition)
    sections = [t.section for t in token_truth(sample, trace.tokens)]
    found: dict[str, list[float]] = defaultdict(list)
    tokens = owned_token(share["step"].values, share.attrs["step_owner"]).tolist()
    for token, value in zip(tokens, share.values.tolist(), strict=True):
        if 0 <= token < len(sections) and np.isfinite(value):
            found[sections[token]].append(value)
    return {name: float(np.mean(v)) for name, v in found.items()}


def looking(passes: list[ForcedPass], section: str = "all") -> dict[str, Any] | None:
    """Compare visual mass at the must-look tokens of a section with that at predictable ones.

    In ``all`` sections together, the two also differ in position: early tokens have fewer keys to
    divide the mass between. Within one section that hardly matters.

    Returns
    -------
    dict
        ``must_look``, ``told`` (predictable): mass on visual tokens, mean over layers, heads and
        steps, then over scenes, with 95% intervals over scenes. ``steps``: number of each.
        ``auc``: probability that a must-look step has more mass than a predictable one (ties count
        half), of the mean over layers and heads; ``auc_by_head`` [layer][head]; ``best``: the head
        with the highest, chosen on these same scenes. None if no answer has tokens of both kinds.
    """
    from scipy.stats import rankdata

    must, mass = [], []
    for p in passes:
        steps = [i for i, t in enumerate(p.truth) if section in ("all", t.section)]
        looks = np.array([p.truth[i].must_look for i in steps], dtype=bool)
        if looks.any() and not looks.all():
            must.append(looks)
            mass.append(p.mass[steps])
    if not must:
        return None
    labels, masses = np.concatenate(must), np.concatenate(mass)

    def auc(values: np.ndarray) -> float:
        positive, negative = int(labels.sum()), int((~labels).sum())
        ranks = rankdata(values)[labels].sum()
        return float((ranks - positive * (positive + 1) / 2) / (positive * negative))

    def mean_mass(chosen: list[np.ndarray]) -> Any:
        means = [m.mean((1, 2))[c].mean() for m, c in zip(mass, chosen, strict=True)]
        return with_interval([float(mean) for mean in means])

    by_head = np.array(
        [[auc(masses[:, k, h]) for h in range(masses.shape[2])] for k in range(masses.shape[1])]
    )
    layer, head = np.unravel_index(by_head.argmax(), by_head.shape)
    return {
        "steps": {"must_look": int(labels.sum()), "told": int((~labels).sum())},
        "must_look": mean_mass(must),
        "told": mean_mass([~looks for looks in must]),
        "auc": auc(masses.mean((1, 2))),
        "auc_by_head": by_head.round(4).tolist(),
        "best": {"layer": int(layer), "head": int(head), "auc": float(by_head.max())},
    }


def pointing(
    passes: list[ForcedPass], section: str, words: Sequence[str] | None = None
) -> dict[str, Any]:
    """Count how often the most attended visual token shows the object that a token is about.

    It counts the must-look tokens of a section that are about an object, or only those words.

    Returns
    -------
    dict
        ``hit`` [layer][head]: fraction of steps; ``chance``: the mean of 1 / visual tokens;
        ``best``: layer and head with the highest fraction, chosen on these same scenes; ``steps``.
    """
    hits, chances = [], []
    for p in passes:
        for step, token in enumerate(p.truth):
            counted = words is None or token.text.strip() in words
            if counted and token.must_look and token.section == section and token.visual_tokens:
                hits.append(np.isin(p.peak[step], token.visual_tokens))
                chances.append(len(token.visual_tokens) / p.visual_tokens)
    if not hits:
        return {"steps": 0, "hit": [], "chance": None, "best": None}
    hit = np.mean(hits, axis=0)
    layer, head = np.unravel_index(hit.argmax(), hit.shape)
    return {
        "steps": len(hits),
        "hit": hit.round(4).tolist(),
        "chance": float(np.mean(chances)),
        "best": {"layer": int(layer), "head": int(head), "hit": float(hit.max())},
    }


def facts_without_image(vlm: VLM, samples: list[Sample]) -> dict[str, Any]:
    """Count verified facts that are right with the image hidden from some steps, or with another.

    Returns
    -------
    dict
        ``right``: by condition (the names of ``HIDDEN_FROM``, and two other pictures), ``size``,
        ``mark`` and ``both`` as fractions; ``chance`` likewise; ``facts``: their number.
    """
    conditions: dict[str, dict[str, Any]] = {
        **{name: {"hide": hide} for name, hide in HIDDEN_FROM.items()},
        "blank image": {"image": "blank"},
        "image of another scene": {"image": "other"},
    }
    result: dict[str, Any] = {}
    for name in progress(list(conditions), description="hiding"):
        right: dict[str, list[bool]] = {"size": [], "mark": []}
        for sample in samples:
            p = forced_pass(vlm, sample, **conditions[name])
            for token, is_right in zip(p.truth, p.right.tolist(), strict=True):
                if token.states_fact:
                    right["size" if states_size(token) else "mark"].append(is_right)
        both = [*right["size"], *right["mark"]]
        result[name] = {
            kind: float(np.mean(values)) if values else None
            for kind, values in (right | {"both": both}).items()
        }
    return {"facts": len(both), "right": result, "chance": {**CHANCE, "both": CHANCE_OF_BOTH}}
