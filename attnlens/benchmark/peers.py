"""What each way of watching attention costs, side by side, and whether they agree."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from attnlens.benchmark.memory import OverLimit, peak_memory
from attnlens.benchmark.model import SHAPES, build
from attnlens.benchmark.recording import rotated, timed
from attnlens.benchmark.variants import PEERS, Seen, variant_calls
from attnlens.lenses.text_pass import TextPass
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.progress import progress
from attnlens.recording.tap import LayerAttention

ROWS_AT_ONCE = 64
"""Query rows whose weights are held at a time, in float64."""


def compare_peers(
    size: str = "small",
    *,
    device: str = "cpu",
    sizes: Sequence[tuple[int, int]] = ((64, 32), (256, 128), (1024, 256), (4096, 1024)),
    repeats: int = 3,
    limit_mib: float = 8192,
) -> list[dict[str, Any]]:
    """Measure every way in ``attnlens.benchmark.variants.PEERS`` on the same prompts.

    Parameters
    ----------
    size
        Name of a shape in ``attnlens.benchmark.model.SHAPES``.
    device
        Where to run.
    sizes
        Numbers of visual tokens and of new tokens.
    repeats
        Timed runs of each, interleaved, after a plain one that is not counted.
    limit_mib
        Most memory that a way may take; one that takes more is not timed.

    Returns
    -------
    list of dict
        One row for each size and way: ``peer``, ``visual``, ``new``; ``seconds`` (median) and
        ``time_ratio`` to plain; ``peak_mib`` (of a process of its own, weights included) and
        ``memory_ratio``; ``mass_error``, the largest difference of the visual mass of any step,
        layer and head from ``float64_mass``, over the steps whose tokens equal those of plain
        (``steps_compared``); ``same_tokens``, whether all do. What takes more than the limit has
        None for all of these, and so have all ways of a size at which plain does; None stands for
        what a way does not give. The error is given for models in float32.
        ``limit_gib`` and ``repeats`` are as given.
    """
    shape = SHAPES[size]
    peaks: dict[tuple[int, int, str], float | None] = {}
    runs = [(*one, peer) for one in sizes for peer in PEERS]
    for visual, new, peer in progress(runs, description="memory"):
        try:
            measured = peak_memory(shape, device, visual, new, peer, limit_mib)
            peaks[visual, new, peer] = measured["peak_mib"]
        except OverLimit:
            peaks[visual, new, peer] = None
    vlm, prompt_of = build(shape, device)
    rows = []
    for visual, new in sizes:
        prompt = prompt_of(visual)
        calls = variant_calls(vlm, prompt, new)
        within = [peer for peer in PEERS if peaks[visual, new, peer] is not None]
        if "plain" not in within:  # nothing to compare with
            within = []
        plain = calls["plain"]().tokens if within else torch.zeros(0)
        exact = float64_mass(vlm, prompt, plain) if within and shape.dtype == "float32" else None
        seconds: dict[str, list[float]] = {peer: [] for peer in within}
        seen: dict[str, Seen] = {}
        rounds = [peer for r in range(repeats if within else 0) for peer in rotated(within, r)]
        for peer in progress(rounds, description=f"{visual} visual, {new} new tokens"):
            taken, seen[peer] = timed(calls[peer], device)
            seconds[peer].append(taken)
        medians = {peer: statistics.median(values) for peer, values in seconds.items()}
        for peer in PEERS:
            peak = peaks[visual, new, peer]
            row = {
                "peer": peer,
                "visual": visual,
                "new": new,
                "seconds": medians.get(peer),
                "time_ratio": _ratio(medians.get(peer), medians.get("plain")),
                "peak_mib": peak,
                "memory_ratio": _ratio(peak, peaks[visual, new, "plain"]),
                "limit_gib": limit_mib / 1024,
                "repeats": repeats,
                **_agreement(seen.get(peer), plain, exact),
            }
            rows.append(row)
    return rows


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base


def _agreement(seen: Seen | None, plain: torch.Tensor, exact: np.ndarray | None) -> dict[str, Any]:
    """Compare tokens and masses; see ``compare_peers``."""
    if seen is None:
        return {"mass_error": None, "steps_compared": 0, "same_tokens": None}
    same = seen.tokens == plain
    # the step after the first other token is fed that token
    steps = len(same) if bool(same.all()) else int(same.int().argmin()) + 1
    if seen.mass is None or exact is None:
        return {"mass_error": None, "steps_compared": 0, "same_tokens": bool(same.all())}
    error = float(np.abs(seen.mass[:steps] - exact[:steps]).max())
    return {"mass_error": error, "steps_compared": steps, "same_tokens": bool(same.all())}


def float64_mass(vlm: VLM, prompt: Prompt, tokens: torch.Tensor) -> np.ndarray:
    """Visual mass of an answer by one forced pass in float64.

    Weights and states are float64; what the model itself computes in float32 (RMSNorm) stays so.

    Parameters
    ----------
    vlm, prompt
        The model, which is copied, and its prompt.
    tokens
        int64 [steps]: the answer.

    Returns
    -------
    numpy.ndarray
        Fraction of attention mass on visual keys, [steps, layers, heads].
    """
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in prompt.inputs.items()
    }
    exact = replace(vlm, model=copy.deepcopy(vlm.model).double())
    whole = TextPass(exact, replace(prompt, inputs=inputs), tokens.tolist())
    layers: dict[int, np.ndarray] = {}

    def see(seen: LayerAttention) -> None:
        """Take the rows from the last one of the prompt on, apart from our own functions."""
        repeated = seen.key.double().repeat_interleave(seen.query.shape[1] // seen.key.shape[1], 1)
        slots = torch.arange(whole.length, device=seen.key.device)
        parts = []
        for start in range(whole.prompt_length - 1, whole.length, ROWS_AT_ONCE):
            rows = slots[start : start + ROWS_AT_ONCE]
            scores = seen.query[:, :, rows].double() @ repeated.mT * seen.scaling
            scores = scores.masked_fill(slots > rows[:, None], float("-inf"))
            weights = torch.softmax(scores, dim=-1)[0]
            parts.append(weights[:, :, whole.visual_slots].sum(-1).T.cpu())
        layers[seen.layer] = torch.cat(parts).numpy()

    with whole.attention(see):
        whole.run(rows=[0])
    return np.stack([layers[layer] for layer in sorted(layers)], axis=1)
