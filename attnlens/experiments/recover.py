"""``attnlens.recover``: the visual attention that an intervention brings back, and its cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from attnlens.boxed import final_answer
from attnlens.errors import InputError
from attnlens.experiments.distributions import kept_log_probabilities
from attnlens.experiments.recovery import UNTOUCHED, Recovery
from attnlens.interventions.base import Intervention
from attnlens.interventions.inject import ForceTokens, Forcing
from attnlens.interventions.session import intervene
from attnlens.interventions.triggers import AtStep
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.recovery import divergences
from attnlens.measures.share import visual_share
from attnlens.progress import progress
from attnlens.recording.run import run
from attnlens.recording.trace import Trace
from attnlens.vlm.load import VLM
from attnlens.vlm.prompt import Prompt, PromptBatch


@dataclass(frozen=True)
class _Run:
    """One generation of one prompt."""

    trace: Trace
    log_probabilities: np.ndarray | None
    """[steps, vocabulary], where they were kept."""
    seconds: float


def recover(
    vlm: VLM,
    prompt: Prompt | Sequence[Prompt],
    interventions: Intervention | Sequence[Intervention],
    max_new_tokens: int = 256,
    *,
    expected: str | Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Recovery:
    """Measure what interventions bring back, against an untouched twin of the same generation.

    For each prompt there is one untouched run, and for each intervention

    - the **free** run: the model goes on as it likes after the intervention. Answers and costs
      come from it.
    - the **forced** twin: the untouched run's tokens are fed again under the intervention, so that
      step t compares with step t and nothing but the intervention differs. Rises and changes of
      the next-token distribution come from it. An intervention that forces text has none.

    Parameters
    ----------
    vlm
        From ``attnlens.load``.
    prompt
        One prompt or several.
    interventions
        One or several, controls among them, with different names.
    max_new_tokens
        Longest response.
    expected
        True answer of each prompt (the content of its box), where it is known.
    seed
        Seed of sampled generation.
    options
        Passed on to ``model.generate``.

    Returns
    -------
    Recovery
        Labelled arrays, and tables of them with intervals and tests.

    Raises
    ------
    InputError
        If something does not fit, before anything is run: no prompt or intervention, two
        interventions of one name, another number of answers than prompts, or as in
        ``attnlens.interventions.intervene``.
    """
    if isinstance(prompt, PromptBatch):
        prompt = prompt.prompts
    prompts = [prompt] if isinstance(prompt, Prompt) else list(prompt)
    chosen = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    truths = _truths(expected, len(prompts))
    _check(vlm, prompts, chosen, max_new_tokens)
    options = {"do_sample": False, **options}
    samples = []
    total = len(prompts) * (1 + sum(1 if _forces(i) else 2 for i in chosen))
    bar = iter(progress(range(total), description="recovery"))
    for one, truth in zip(prompts, truths, strict=True):
        next(bar)
        untouched = _generate(vlm, one, max_new_tokens, None, seed, options)
        ids = untouched.trace.data["predicted_token_id"].values.tolist()
        rows = {UNTOUCHED: _row(untouched, untouched, untouched, truth)}
        for intervention in chosen:
            next(bar)
            free = _generate(vlm, one, max_new_tokens, intervention, seed, options, keep=False)
            forced = None
            if not _forces(intervention):
                next(bar)
                twin = ForceTokens(tuple(ids), when=AtStep(0)) + intervention
                # every token is forced, an end token among them: it must not end the twin
                to_the_end = {"do_sample": False, "eos_token_id": None}
                forced = _generate(vlm, one, len(ids), twin, seed, to_the_end)
            rows[intervention.name] = _row(untouched, free, forced, truth)
        samples.append(rows)
    next(bar, None)
    return Recovery(_dataset(samples, vlm))


def _truths(expected: str | Sequence[str] | None, count: int) -> list[str | None]:
    if expected is None:
        return [None] * count
    given = [expected] if isinstance(expected, str) else list(expected)
    if len(given) != count:
        raise InputError(f"{len(given)} true answers for {count} prompts: give one for each")
    return list(given)


def _check(
    vlm: VLM, prompts: list[Prompt], chosen: list[Intervention], max_new_tokens: int
) -> None:
    if not prompts:
        raise InputError("no prompt was given: give at least one")
    if not chosen:
        raise InputError("no intervention was given: give at least one")
    if max_new_tokens < 2:
        raise InputError(f"max_new_tokens={max_new_tokens}: give at least 2")
    names = [i.name for i in chosen if isinstance(i, Intervention)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or UNTOUCHED in names:
        raise InputError(
            f"two interventions are called {(twice or [UNTOUCHED])[0]!r}: measure them one by one"
        )
    for one in prompts:
        for intervention in chosen:
            intervene(vlm, one, intervention)  # made, never opened: it checks what does not fit


def _forces(intervention: Intervention) -> bool:
    return any(isinstance(part, Forcing) for part in intervention.parts)


def _generate(
    vlm: VLM,
    prompt: Prompt,
    max_new_tokens: int,
    intervention: Intervention | None,
    seed: int,
    options: dict[str, Any],
    *,
    keep: bool = True,
) -> _Run:
    start = time.perf_counter()
    with kept_log_probabilities(vlm) if keep else nullcontext() as kept:
        trace = run(vlm, prompt, max_new_tokens, intervention, seed=seed, **options)
    seconds = time.perf_counter() - start
    found = None if kept is None else torch.stack(kept).numpy()[: trace.data.sizes["step"]]
    return _Run(trace, found, seconds)


def _row(untouched: _Run, free: _Run, forced: _Run | None, truth: str | None) -> dict[str, Any]:
    """Everything that is kept of one intervention in one prompt."""
    events = free.trace.attrs.get("interventions", [])
    answer = final_answer(free.trace.text)
    before = final_answer(untouched.trace.text)
    row: dict[str, Any] = {
        "answer": "" if answer is None else answer,
        "answer_changed": float(answer != before),
        "right": float("nan") if truth is None else float(answer == truth),
        "steps": float(free.trace.data.sizes["step"]),
        "seconds": free.seconds,
        "inserted": float(sum(e["inserted"] for e in events)),
        "fired": float(len(events)),
        "first_step": float("nan"),
    }
    if forced is None:
        return row
    acted = [
        e
        for e in forced.trace.attrs.get("interventions", [])
        if not e["intervention"].startswith("force:")
    ]
    row["first_step"] = float(min(e["step"] for e in acted)) if acted else float("nan")
    assert untouched.log_probabilities is not None
    assert forced.log_probabilities is not None
    row["kl"], row["hellinger"] = divergences(untouched.log_probabilities, forced.log_probabilities)
    for event in acted:  # predicted before the tag was known: not under the intervention
        for name in ("kl", "hellinger"):
            row[name][event["step"] : event["known_at"]] = np.nan
    mass = forced.trace.data["mass"]
    row["visual"] = mass.sel(segment="visual").values
    row["copied"] = mass.sel(segment="copied").values
    row["share"] = _shares(forced.trace, include_copied=False)
    row["share_with_copied"] = _shares(forced.trace, include_copied=True)
    return row


def _shares(trace: Trace, *, include_copied: bool) -> np.ndarray:
    """Visual share [definition, step] in every definition; NaN where it is not defined."""
    steps = trace.data["step"].values
    table = np.full((len(DEFINITIONS), len(steps)), np.nan)
    for row, (name, definition) in enumerate(DEFINITIONS.items()):
        if include_copied and not definition.counts_copied:
            continue
        share = visual_share(trace, name, include_copied=include_copied)
        table[row, share["step"].values] = share.values
    return table


def _dataset(samples: list[dict[str, dict[str, Any]]], vlm: VLM) -> xr.Dataset:
    runs = list(samples[0])
    steps = max(len(rows[UNTOUCHED]["kl"]) for rows in samples)
    axes = {
        "kl": ("step",),
        "hellinger": ("step",),
        "visual": ("step", "layer", "head"),
        "copied": ("step", "layer", "head"),
        "share": ("definition", "step"),
        "share_with_copied": ("definition", "step"),
    }
    variables: dict[str, Any] = {}
    for name in samples[0][UNTOUCHED]:
        if name == "answer":
            texts = [[rows[run][name] for run in runs] for rows in samples]
            variables[name] = (("sample", "run"), np.array(texts, dtype=str))
            continue
        dims = axes.get(name, ())
        shape = list(np.shape(samples[0][UNTOUCHED][name]))
        if dims:
            shape[dims.index("step")] = steps
        table = np.full((len(samples), len(runs), *shape), np.nan)
        for i, rows in enumerate(samples):
            for j, run_name in enumerate(runs):
                value = rows[run_name].get(name)
                if value is None:
                    continue
                at = tuple(
                    slice(0, np.shape(value)[k]) if d == "step" else slice(None)
                    for k, d in enumerate(dims)
                )
                table[(i, j, *at)] = value
        variables[name] = (("sample", "run", *dims), table)
    text = vlm.model.config.text_config
    per_token = (
        2
        * text.num_hidden_layers
        * text.num_key_value_heads
        * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        * next(vlm.model.parameters()).element_size()
    )
    data = xr.Dataset(
        variables,
        {"run": runs, "definition": list(DEFINITIONS), "step": np.arange(steps)},
        {"model": vlm.name, "cache_bytes_per_token": per_token},
    )
    data["cache_bytes"] = data["inserted"] * per_token
    untouched = data.sel(run=UNTOUCHED, drop=True)
    data["rise"] = data["share"] - untouched["share"]
    data["rise_with_copied"] = data["share_with_copied"] - untouched["share_with_copied"]
    data["mass_rise"] = data["visual"] - untouched["visual"]
    data["mass_rise_with_copied"] = data["mass_rise"] + data["copied"]
    return data
