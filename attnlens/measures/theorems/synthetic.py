"""Attention of random queries and keys, whose dilution is known in closed form.

A row's scores are ``q . k / sqrt(d)``. Keys are random, so that scores scatter about 0 with the
standard deviation asked for; visual keys have a part along the query that raises their scores by a
gap; the first key, the sink, has a separate score. Then, for every row,

    preference = gap + log mean over V of exp(e) - log mean over R of exp(e)

with the scatter e, which vanishes where all scores are equal; with a sink of score s among n other
keys of score 0 the second mean is ``(exp(s) + n) / (n + 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.segments import SEGMENTS

DIMENSION = 16
"""Length of queries and keys."""


def synthetic_attention(
    steps: int,
    *,
    visual: int = 64,
    text: int = 32,
    shape: tuple[int, int] = (2, 2),
    gap: float | Sequence[float] | np.ndarray = 0.0,
    scatter: tuple[float, int] = (0.0, 0),
    sink: float | None = None,
    copied: tuple[int, int] = (0, 0),
) -> xr.Dataset:
    """Draw queries and keys, and return the mass of their softmax as a trace holds it.

    Parameters
    ----------
    steps
        Steps of the run; each adds one response key.
    visual, text
        Number of visual keys, and of keys of the user's text, in the prompt.
    shape
        Number of layers, and of heads in each.
    gap
        Added to the scores of visual keys: one number, or one for each step.
    scatter
        Standard deviation of the scores of random keys, and the seed that they are drawn with.
    sink
        Score of the very first key; no sink key when not given.
    copied
        How many visual keys are inserted again (the first ones, over and over, with their scores),
        and the step from which on they are seen.

    Returns
    -------
    xarray.Dataset
        ``mass`` (step, layer, head, segment) and ``keys`` (step, segment), float64, with a
        coordinate ``predicted_token``: what ``attnlens.measures`` takes for a trace.

    Raises
    ------
    InputError
        If a number is out of range, or there are not as many gaps as steps.
    """
    (layers, heads), (deviation, seed) = shape, scatter
    if min(steps, visual, text, layers, heads) < 1:
        raise InputError(
            f"{steps} steps, {visual} visual and {text} text keys, {layers} layers of {heads} "
            "heads: give at least 1 of each"
        )
    gaps = np.asarray(gap, dtype=np.float64)
    if gaps.shape not in ((), (steps,)):
        raise InputError(f"gaps of shape {gaps.shape} for {steps} steps: give one, or one for each")
    gaps = np.broadcast_to(gaps, (steps,))
    rng = np.random.default_rng(seed)
    segments = ["sink"] * (sink is not None) + ["visual"] * visual + ["query"] * text
    segments += ["response"] * (steps - 1)
    again, since = copied
    segments += ["copied"] * again
    of_segment = np.array(segments)
    # two directions are for the gap and the sink, the others carry the scatter
    keys = rng.standard_normal((layers, heads, len(of_segment), DIMENSION))
    keys[..., :2] = 0.0
    keys[:, :, of_segment == "visual", 0] = 1.0
    if sink is not None:
        keys[:, :, 0] = 0.0
        keys[:, :, 0, 1] = sink
    if again:
        first_visual = int(sink is not None)
        keys[:, :, -again:] = keys[:, :, first_visual + np.arange(again) % visual]
    queries = rng.standard_normal((steps, layers, heads, DIMENSION))
    queries[..., :2] = 0.0
    queries *= deviation / np.linalg.norm(queries, axis=-1, keepdims=True)
    queries[..., 0] = gaps[:, None, None]
    queries[..., 1] = 1.0
    queries *= np.sqrt(DIMENSION)
    mass = np.zeros((steps, layers, heads, len(SEGMENTS)))
    counts = np.zeros((steps, len(SEGMENTS)), dtype=np.int64)
    prompt = len(of_segment) - (steps - 1) - again
    for step in range(steps):
        slots = [*range(prompt + step), *range(len(of_segment) - again, len(of_segment))]
        slots = slots if step >= since else slots[: prompt + step]
        seen = of_segment[slots]
        scores = np.einsum("lhd,lhkd->lhk", queries[step], keys[:, :, slots]) / np.sqrt(DIMENSION)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        for column, name in enumerate(SEGMENTS):
            mass[step, ..., column] = weights[..., seen == name].sum(-1)
            counts[step, column] = (seen == name).sum()
    return xr.Dataset(
        {
            "mass": (("step", "layer", "head", "segment"), mass),
            "keys": (("step", "segment"), counts),
        },
        {
            "step": np.arange(steps),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "segment": list(SEGMENTS),
            "predicted_token": ("step", np.array([f" {i}" for i in range(steps)])),
        },
    )
