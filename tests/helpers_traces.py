"""Builders of synthetic traces for tests, and hypothesis strategies that draw them.

A dataset is built either from a full attention matrix, whose keys have known segments, or from
mass by segment. Both follow the layout of ``attnlens.Trace``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from hypothesis import strategies as st

from attnlens.segments import SEGMENTS

PROMPT = {"sink": 1, "system": 3, "visual": 5, "vision_end": 1, "query": 4}


@dataclass(frozen=True)
class FakeRegion:
    """A region as a trace lists it."""

    name: str
    start: int
    stop: int
    closed: bool = True


@dataclass
class FakeTrace:
    """The attributes of a trace that measures may use."""

    data: xr.Dataset
    regions: list[FakeRegion] = field(default_factory=list)

    @property
    def tokens(self) -> list[str]:
        return [str(token) for token in self.data["predicted_token"].values]

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self.data.attrs)


@dataclass(frozen=True)
class Attention:
    """Full attention rows with the segment of every key.

    ``weights`` (step, layer, head, key) is zero where ``visible`` (step, key) is false; every row
    adds up to one. ``labels`` (key,) names the segment of each key.
    """

    weights: np.ndarray
    visible: np.ndarray
    labels: np.ndarray

    def at(self, step: int, layer: int, head: int, *segments: str) -> np.ndarray:
        """Return the weights of the visible keys of some segments."""
        chosen = self.visible[step] & np.isin(self.labels, segments)
        return self.weights[step, layer, head, chosen]


def random_attention(
    seed: int = 0,
    *,
    steps: int = 6,
    layers: int = 3,
    heads: int = 4,
    prompt: dict[str, int] | None = None,
    insert_at: int | None = None,
    inserted: int = 5,
    spread: float = 1.5,
    zeroed: float = 0.0,
) -> Attention:
    """Draw softmax rows over a growing context.

    With `insert_at`, `inserted` copied keys between two wrapping response keys appear before that
    step. `spread` is the standard deviation of the scores; 0 gives uniform attention. `zeroed` is
    the probability that a key gets no weight at all (the first key never).
    """
    rng = np.random.default_rng(seed)
    prompt = PROMPT if prompt is None else prompt
    labels = [name for name, count in prompt.items() for _ in range(count)]
    born = [0] * len(labels)
    for step in range(steps):
        if step == insert_at:
            labels += ["response", *["copied"] * inserted, "response"]
            born += [step] * (inserted + 2)
        if step + 1 < steps:
            labels.append("response")
            born.append(step + 1)
    visible = np.array(born)[None, :] <= np.arange(steps)[:, None]
    scores = rng.normal(0, spread, (steps, layers, heads, len(labels))) if spread else 0.0
    weights = np.exp(scores) * np.broadcast_to(
        visible[:, None, None, :], (steps, layers, heads, len(labels))
    )
    if zeroed:
        drop = rng.random(weights.shape) < zeroed
        drop[..., 0] = False
        weights = np.where(drop, 0.0, weights)
    weights = weights / weights.sum(-1, keepdims=True)
    return Attention(weights, visible, np.array(labels))


def dataset_of_attention(attention: Attention, **options: Any) -> xr.Dataset:
    """Build the dataset that a recorder would make of full attention rows."""
    weights, visible, labels = attention.weights, attention.visible, attention.labels
    mass = np.stack([weights[..., labels == name].sum(-1) for name in SEGMENTS], axis=-1)
    keys = np.stack([visible[:, labels == name].sum(-1) for name in SEGMENTS], axis=-1)
    nonzero = (weights[..., labels == "visual"].sum(2) > 0).sum(-1)
    return make_dataset(mass, keys=keys, visual_nonzero=nonzero, **options)


def make_dataset(
    mass: np.ndarray,
    *,
    keys: np.ndarray | None = None,
    visual_nonzero: np.ndarray | None = None,
    regions: Sequence[FakeRegion] = (),
    layer_labels: Sequence[int] | None = None,
) -> xr.Dataset:
    """Build the dataset of a trace from mass (step, layer, head, segment).

    A region's first and last predicted tokens are its tags; a region listed later lies on top.
    """
    steps, layers, heads, _ = mass.shape
    if keys is None:
        keys = np.zeros((steps, len(SEGMENTS)), dtype=int)
        for name, count in PROMPT.items():
            keys[:, SEGMENTS.index(name)] = count
        keys[:, SEGMENTS.index("response")] = np.arange(steps)
    if visual_nonzero is None:
        visual_nonzero = np.repeat(keys[:, [SEGMENTS.index("visual")]], layers, axis=1)
    tokens = [f" t{step}" for step in range(steps)]
    names = [""] * steps
    for region in regions:
        tokens[region.start] = f"<{region.name}>"
        if region.closed:
            tokens[region.stop - 1] = f"</{region.name}>"
        names[region.start : region.stop] = [region.name] * (region.stop - region.start)
    return xr.Dataset(
        {
            "mass": (("step", "layer", "head", "segment"), mass.astype("float32")),
            "keys": (("step", "segment"), keys.astype("int32")),
            "visual_nonzero": (("step", "layer"), visual_nonzero.astype("int32")),
        },
        coords={
            "step": np.arange(steps),
            "layer": np.arange(layers) if layer_labels is None else np.asarray(layer_labels),
            "head": np.arange(heads),
            "segment": list(SEGMENTS),
            "query_token": ("step", np.array(["\n", *tokens[:-1]], dtype=str)),
            "predicted_token": ("step", np.array(tokens, dtype=str)),
            "query_token_id": ("step", np.arange(steps) + 99),
            "predicted_token_id": ("step", np.arange(steps) + 100),
            "region": ("step", np.array(names, dtype=str)),
        },
        attrs={
            "model": "synthetic",
            "config_hash": "0" * 16,
            "mode": "back",
            "question": "What is left of the red circle?",
            "dtype": "float32",
            "attention": "sdpa",
            "device": "cpu",
            "versions": {},
            "generation": {"max_new_tokens": steps},
            "seed": 0,
            "images": [],
            "instructions": "",
        },
    )


def planted_dataset(
    visual: Sequence[float] | np.ndarray,
    *,
    layers: int = 2,
    heads: int = 3,
    regions: Sequence[FakeRegion] = (),
) -> xr.Dataset:
    """Build a dataset whose visual mass is given, as (step,) or (step, layer, head).

    The rest of the mass goes to the sink (half), the query (a quarter) and the response (a quarter,
    also at step 0).
    """
    series = np.asarray(visual, dtype=float)
    if series.ndim == 1:
        series = np.broadcast_to(series[:, None, None], (len(series), layers, heads))
    mass = np.zeros((*series.shape, len(SEGMENTS)))
    mass[..., SEGMENTS.index("visual")] = series
    for name, part in (("sink", 0.5), ("query", 0.25), ("response", 0.25)):
        mass[..., SEGMENTS.index(name)] = (1 - series) * part
    return make_dataset(mass, regions=regions)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Draw full attention rows of small traces, some with copied keys, some with zero weights."""
    steps = draw(st.integers(1, 7))
    prompt = {
        "sink": 1,
        "system": draw(st.integers(0, 3)),
        "visual": draw(st.integers(1, 6)),
        "vision_end": draw(st.integers(0, 2)),
        "query": draw(st.integers(0, 4)),
    }
    return random_attention(
        draw(st.integers(0, 2**20)),
        steps=steps,
        layers=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 4)),
        prompt=prompt,
        insert_at=draw(st.none() | st.integers(0, steps - 1)),
        inserted=draw(st.integers(1, 4)),
        spread=draw(st.sampled_from([0.0, 1.0, 6.0])),
        zeroed=draw(st.sampled_from([0.0, 0.3])),
    )
