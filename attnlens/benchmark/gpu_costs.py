"""What recording and replaying cost at the layer shape of a 7B model."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

import attnlens
from attnlens.benchmark.model import Shape, build
from attnlens.benchmark.recording import by_context, rotated, spread_of, timed
from attnlens.benchmark.variants import Seen

AROUND = 66
"""Tokens of a prompt around its visual tokens."""


def overhead(shape: Shape, *, device: str, visual: int, new: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a decoding step, plain and recorded, and the peak memory of both.

    As ``attnlens.benchmark.recording.by_context`` measures it; ``keys`` are those of the last step.
    """
    (row,) = by_context(shape, device=device, visuals=(visual,), new=new, repeats=repeats)
    return {
        "keys": visual + AROUND + new - 1,
        "plain_ms": row["plain"],
        "recorded_ms": row["recorded"],
        "ratio": row["ratio"],
        "spread": row["spread"],
        "plain_peak_mib": row["peak_mib"]["plain"],
        "recorded_peak_mib": row["peak_mib"]["recorded"],
        "steps": new - 1,
        "repeats": repeats,
    }


def replay_rate(
    shape: Shape, *, device: str, visual: int, new: int, repeats: int
) -> list[dict[str, Any]]:
    """Time the ways to feed a known answer: tokens of the answer a second, interleaved.

    ``plain pass`` is one pass over prompt and answer without a cache; ``recorded pass`` is the same
    under ``attnlens.record``; ``attnlens.force`` feeds the prompt and then the answer on a cache.
    ``ratio`` is of the times, to the plain pass.
    """
    vlm, prompt_of = build(shape, device)
    prompt = prompt_of(visual)
    ids = np.random.default_rng(1).integers(10, 1000, new).tolist()
    whole = vlm.family.append(vlm.model.config, prompt.inputs, ids[:-1])
    answer = torch.tensor(ids)

    def plain() -> Seen:
        with torch.no_grad():
            vlm.model(**whole, use_cache=False, logits_to_keep=1)
        return Seen(answer)

    def recorded() -> Seen:
        with attnlens.record(vlm, prompt, visual_map=False) as recorder:
            plain()
        return Seen(answer, recorder.trace.data["mass"].values)

    def force() -> Seen:
        trace = attnlens.force(vlm, prompt, ids, visual_map=False)
        return Seen(answer, trace.data["mass"].values)

    calls = {"plain pass": plain, "recorded pass": recorded, "attnlens.force": force}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name in rotated(list(calls), round_):
            taken, _ = timed(calls[name], device)
            if round_:  # the first round warms up
                seconds[name].append(taken)
    base = statistics.median(seconds["plain pass"])
    return [
        {
            "way": name,
            "visual": visual,
            "tokens": new,
            "seconds": statistics.median(values),
            "tokens_a_second": new / statistics.median(values),
            "ratio": statistics.median(values) / base,
            "spread": spread_of(values),
            "repeats": repeats,
        }
        for name, values in seconds.items()
    ]
