"""The cost of recording: plain, recorded and eager generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

import attnlens
from attnlens.benchmark.memory import peak_memory, peak_mib, reset_peak
from attnlens.benchmark.model import SHAPES, Shape, build, visual_tokens
from attnlens.benchmark.variants import VARIANTS, Seen, generate, variant_calls
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.progress import progress

MEMORY_RUNS = 5
"""Processes per variant; their median peak is reported, since peaks vary by about 50 MiB."""


def timed(call: Callable[[], Seen], device: str) -> tuple[float, Seen]:
    """Return the seconds that a call takes, and what it gives."""
    begun = now(device)
    result = call()
    return now(device) - begun, result


def now(device: str) -> float:
    """Seconds on the clock, once the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(
    size: str = "small",
    *,
    family: str = "",
    device: str = "cpu",
    visual: int = 1024,
    new: int = 256,
    repeats: int = 5,
) -> dict[str, Any]:
    """Time the three variants, interleaved, and measure the peak memory of each in its process.

    Parameters
    ----------
    size
        Name of a shape in ``attnlens.benchmark.model.SHAPES``.
    family
        ``model_type`` of a family whose own parts are around the text model, and whose processor
        makes the prompt of pictures; see ``attnlens.benchmark.model.Shape``.
    device
        Where to run.
    visual, new
        Visual tokens of the prompt, and tokens to generate. A prompt of pictures may have more
        visual tokens.
    repeats
        Timed runs of each variant, after a plain one that is not counted.

    Returns
    -------
    dict
        ``visual``: how many visual tokens there were.
        ``seconds`` (medians) and ``all_seconds``; ``peak_mib`` (weights included; of the process
        with the median peak) and its ``rise_mib`` (over what was held right before generation),
        as in ``peak_memory``;
        ``time_ratio`` and ``memory_ratio`` (of the peaks) of each variant to ``plain``; and
        ``same_tokens``: whether all ``plain`` and ``recorded`` runs gave the same tokens.
    """
    shape = replace(SHAPES[size], family=family)
    # first, while this process is small: a new one may inherit the peak of its parent
    measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for variant in progress([*VARIANTS] * MEMORY_RUNS, description="memory"):
        measured[variant].append(peak_memory(shape, device, visual, new, variant))
    memory = {
        variant: sorted(runs, key=lambda run: run["peak_mib"])[MEMORY_RUNS // 2]
        for variant, runs in measured.items()
    }
    vlm, prompt_of = build(shape, device)
    prompt = prompt_of(visual)
    calls = variant_calls(vlm, prompt, new)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    same = True
    reference = calls["plain"]().tokens
    rounds = [variant for round_ in range(repeats) for variant in rotated(list(VARIANTS), round_)]
    for variant in progress(rounds, description="timing"):
        taken, seen = timed(calls[variant], device)
        seconds[variant].append(taken)
        if variant != "eager":
            same = same and torch.equal(seen.tokens, reference)
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    plain = memory["plain"]["peak_mib"]
    return {
        "size": size,
        "device": device,
        "threads": torch.get_num_threads(),
        "family": family,
        "visual": visual_tokens(prompt),
        "new": new,
        "repeats": repeats,
        "seconds": medians,
        "all_seconds": seconds,
        "time_ratio": {variant: medians[variant] / medians["plain"] for variant in VARIANTS},
        "peak_mib": {variant: memory[variant]["peak_mib"] for variant in VARIANTS},
        "rise_mib": {variant: memory[variant]["rise_mib"] for variant in VARIANTS},
        "memory_ratio": {variant: memory[variant]["peak_mib"] / plain for variant in VARIANTS},
        "same_tokens": same,
    }


def by_context(
    shape: Shape,
    *,
    device: str = "cpu",
    visuals: tuple[int, ...] = (256, 1024, 4096),
    new: int = 65,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Milliseconds of one decoding step, plain and recorded, as the context grows.

    Parameters
    ----------
    shape
        Of the model.
    device, repeats
        As in ``compare``.
    visuals
        Numbers of visual tokens, at least.
    new
        Tokens generated per run. The clock starts when the first token is there: the prefill
        varies by more than all steps cost. It stops after everything that recording computes at its
        end.

    Returns
    -------
    list of dict
        ``visual``, ``plain`` and ``recorded`` (milliseconds a step, from median runs), ``ratio``,
        and ``spread``: half the range of the middle half of the runs, over the median, the
        larger of the two. A smaller difference of the ratio from 1 means nothing. ``peak_mib``: the
        highest memory in the runs of each, weights included, as in
        ``attnlens.benchmark.memory.reset_peak``; on a CPU that of the process, which keeps what it
        once took.
    """
    vlm, prompt_of = build(shape, device)
    table = []
    for visual in progress(visuals, description="context"):
        prompt = prompt_of(visual)
        taken: dict[str, list[float]] = {"plain": [], "recorded": []}
        peaks = dict.fromkeys(taken, 0.0)
        for round_ in range(repeats + 1):
            for variant in rotated(list(taken), round_):
                reset_peak(device)
                milliseconds = 1000 * _after_prefill(vlm, prompt, new, variant, device)
                if round_:  # the first round warms up
                    taken[variant].append(milliseconds / (new - 1))
                    peaks[variant] = max(peaks[variant], peak_mib(device))
        plain, recorded = (statistics.median(values) for values in taken.values())
        table.append(
            {
                "visual": visual_tokens(prompt),
                "plain": plain,
                "recorded": recorded,
                "ratio": recorded / plain,
                "spread": max(map(spread_of, taken.values())),
                "peak_mib": peaks,
            }
        )
    return table


class _FirstToken:
    """A streamer that notes when the first generated token is there."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._puts = 0
        self.at = 0.0

    def put(self, _value: Any) -> None:
        self._puts += 1
        if self._puts == 2:  # the prompt comes first
            self.at = now(self._device)

    def end(self) -> None:
        """Do nothing."""


def _after_prefill(vlm: VLM, prompt: Prompt, new: int, variant: str, device: str) -> float:
    """Seconds from the first token to the end of a generation, recording included."""
    clock = _FirstToken(device)
    recorded = variant == "recorded"
    with attnlens.record(vlm, prompt, visual_map=False) if recorded else nullcontext():
        generate(vlm.model, prompt.inputs, new, streamer=clock)
    return now(device) - clock.at


def spread_of(values: list[float]) -> float:
    """Half the range of the middle half of some values, over their median."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return (quarters[2] - quarters[0]) / 2 / statistics.median(values)


def rotated(items: list, by: int) -> list:
    """Start a round with another item each time: none always follows the same one."""
    by %= len(items)
    return items[by:] + items[:by]
