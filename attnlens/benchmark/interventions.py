"""What inserting visual tokens costs, compared with the least that it can cost."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from typing import Any

import torch

from attnlens.benchmark.model import SHAPES, build
from attnlens.benchmark.recording import now, rotated
from attnlens.interventions import (
    At,
    AtStep,
    Copy,
    Intervention,
    Route,
    WhenVisualBelow,
    intervene,
)
from attnlens.interventions.cache_editor import feed_embedded
from attnlens.models.cache import returned_cache
from attnlens.models.load import VLM
from attnlens.progress import progress

THRESHOLD = 0.4
"""Threshold of a trigger: about half the visual share of 1,024 tokens under random weights."""

LIMITS = {
    "copy": "COPY at the last step, in one pass over as many tokens (1.1)",
    "route": "ROUTE of 50% in a random choice of as many, whole runs (1.05)",
    "never": "COPY that never fires in the plain run (1.05)",
    "never, ROUTE": "ROUTE that never fires in the plain run (1.05)",
    "never, by share": "a trigger at half of the share that never fires in the plain run (1.05)",
}
"""What is measured, as ratios, with the bound that each should keep."""


def compare_interventions(
    size: str = "small",
    *,
    device: str = "cpu",
    visual: int = 1024,
    new: int = 256,
    repeats: int = 5,
) -> dict[str, Any]:
    """Time insertions and one forward pass, interleaved: medians of the ratios within a round.

    Parameters
    ----------
    size, device, visual, new, repeats
        As in ``attnlens.benchmark.recording.compare``. Insertions come at step ``new``, and two
        more tokens follow.

    Returns
    -------
    dict
        ``copy``: seconds of the insertion of all visual tokens, over those of one pass of the text
        model over as many embedded tokens on a cache of the same length. ``route``: a run with
        ROUTE of half of them, over one with a random choice of as many. ``never``, ``never,
        ROUTE``, ``never, by share``: a run under an intervention that never fires, over a plain
        one: COPY at a text, ROUTE at a text (which records the visual map all along), COPY by
        visual share, with a threshold at about half of it (which computes it at every step, as far
        as it must be known). ``rounds``: the ratios of every round, which these are the medians of;
        ``seconds`` (medians of each).
    """
    vlm, prompt_of = build(SHAPES[size], device)
    prompt = prompt_of(visual)
    runs = _runs(new)
    warm_up = _runs(2)
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, "insertion", "one pass")}
    rounds = [name for r in range(repeats + 1) for name in rotated(list(runs), r)]
    for place, name in enumerate(progress(rounds, description="interventions")):
        first = place < len(runs)  # a short round warms up
        chosen, step = (warm_up[name], 2) if first else (runs[name], new)
        begun = now(device)
        with nullcontext() if chosen is None else intervene(vlm, prompt, chosen) as session:
            output = vlm.model.generate(
                **prompt.inputs,
                max_new_tokens=step + 2,
                min_new_tokens=step + 2,
                do_sample=False,
                return_dict_in_generate=True,
            )
        taken = now(device) - begun
        if first:
            continue
        seconds[name].append(taken)
        if name == "copy":
            assert session is not None
            seconds["insertion"].append(session.events[0].seconds)
            seconds["one pass"].append(
                _one_pass(
                    vlm, returned_cache(output), len(prompt.segments) - 1 + new, visual, device
                )
            )

    def ratios(name: str, base: str) -> list[float]:
        # within a round: a machine's speed drifts by more than what is measured here
        pairs = zip(seconds[name], seconds[base], strict=True)
        return [one / other for one, other in pairs]

    found = {
        "copy": ratios("insertion", "one pass"),
        "route": ratios("route", "random"),
        **{name: ratios(name, "plain") for name in runs if name.startswith("never")},
    }
    return {
        **{name: statistics.median(values) for name, values in found.items()},
        "rounds": found,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "visual": visual,
        "new": new,
        "repeats": repeats,
    }


def _runs(step: int) -> dict[str, Intervention | None]:
    """Return what is timed, by name; insertions come at a step."""
    return {
        "plain": None,
        "never": Copy(when=At("<never>")),
        "never, ROUTE": Route(when=At("<never>"), percent=50),
        "never, by share": Copy(when=WhenVisualBelow(THRESHOLD)),
        "copy": Copy(when=AtStep(step)),
        "route": Route(when=AtStep(step), percent=50),
        "random": Route(when=AtStep(step), percent=50, select="random"),
    }


def _one_pass(vlm: VLM, cache: Any, past: int, tokens: int, device: str) -> float:
    """Seconds of one pass over embedded tokens on the first ``past`` tokens of a cache."""
    cache.crop(past - cache.get_seq_length())
    text = vlm.family.parts(vlm.model).text
    block = torch.zeros((1, tokens, text.config.hidden_size), device=device, dtype=vlm.model.dtype)
    positions = torch.arange(past, past + tokens, device=device).expand(4, 1, -1)
    begun = now(device)
    feed_embedded(text, block, positions, past, cache)
    return now(device) - begun
