"""Attention knock-out by edge: these queries do not see these keys, in these layers and heads.

Which layers the image is read in shows when edges are cut in a window of layers at a time (Geva et
al. 2023, arXiv 2304.14767; for vision-language models Zhang et al. 2024, arXiv 2411.18620). Which
heads read it shows when they are cut one head at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from attnlens.errors import InputError
from attnlens.interventions.base import Heads, select_heads
from attnlens.lenses.head_outputs import (
    CHUNK_ELEMENTS,
    check_output,
    head_weights,
    output_without_keys,
)
from attnlens.lenses.text_pass import Hook, Response, TextPass
from attnlens.measures.correlation import spearman
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.progress import progress
from attnlens.recording.response import token_texts
from attnlens.recording.tap import LayerAttention
from attnlens.segments import SEGMENTS

STEPS = "steps"
"""Name of the rows that predict the response: the last one of the prompt, and the response's."""

Positions = str | Sequence[int]
"""A segment, ``steps``, or slots."""


@dataclass(frozen=True)
class Edges:
    """Edges of attention, from queries to keys.

    Attributes
    ----------
    queries, keys
        A segment (``attnlens.segments``), ``"steps"`` (the rows that predict the response), or
        slots, counted from the start of the prompt. A query always sees its own key.
    layers, heads
        Where; everywhere when not given. Heads are numbers, or (layer, head) pairs.
    """

    queries: Positions = STEPS
    keys: Positions = "visual"
    layers: Sequence[int] | None = None
    heads: Heads = None


def edge_knockout(
    vlm: VLM, prompt: Prompt, response: Response, edges: Sequence[Edges]
) -> xr.Dataset:
    """Measure what a response's tokens lose when edges are cut, by teacher forcing.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    response
        The response, as a trace or as token ids.
    edges
        What is cut, in one pass for each.

    Returns
    -------
    xarray.Dataset
        ``change[edges, step]``: log-probability (nats) of the response's token minus that of the
        uncut pass, ``log_probability[step]``; ``kept[edges, step]``: whether the token that was
        the most likely still is. Coordinate ``response_token``.

    Raises
    ------
    InputError
        If a segment is unknown or empty, a slot, layer or head is not there, no edges are given,
        the attention of a layer is no softmax mean, or a trace is that of another prompt or was
        made under an intervention.

    Notes
    -----
    Memory: that of one pass, the residual stream that enters each layer, and at most 16 million
    attention weights or logits (float32) at a time, however long the response is.
    """
    return _knocked_out(TextPass(vlm, prompt, response), edges)


@torch.no_grad()
def _knocked_out(whole: TextPass, edges: Sequence[Edges]) -> xr.Dataset:
    if isinstance(edges, Edges) or not all(isinstance(one, Edges) for one in edges):
        raise InputError(f"edges={edges!r}: give a list of Edges(...)")
    cuts = [_Cut(whole, one) for one in edges]
    if not cuts:
        raise InputError("no edges were given: give at least one Edges(...)")
    base, best = whole.read()
    change, kept = [], []
    for cut in progress(cuts, description="cutting edges"):
        found, likely = cut.read()
        change.append((found - base).numpy())
        kept.append((likely == best).numpy())
    words = np.array(token_texts(whole.vlm.tokenizer, whole.ids), dtype=str)
    return xr.Dataset(
        {
            "change": (("edges", "step"), np.array(change), {"units": "nats"}),
            "kept": (("edges", "step"), np.array(kept)),
            "log_probability": ("step", base.numpy()),
        },
        {"step": range(len(whole.ids)), "response_token": ("step", words)},
        {"model": whole.vlm.name},
    )


def window_sweep(
    vlm: VLM,
    prompt: Prompt,
    response: Response,
    *,
    window: int = 1,
    queries: Positions = STEPS,
    keys: Positions = "visual",
) -> xr.Dataset:
    """Cut edges in every window of layers: where it hurts, they are used.

    Parameters
    ----------
    vlm, prompt, response
        As in ``edge_knockout``.
    window
        How many layers in a row are cut together.
    queries, keys
        As in ``Edges``; by default the response does not see the image.

    Returns
    -------
    xarray.Dataset
        As ``edge_knockout``, with the dimension ``first_layer`` in place of ``edges``.

    Raises
    ------
    InputError
        If there is no such window, or as in ``edge_knockout``.
    """
    from attnlens.models.families import parts_of

    count = parts_of(vlm.model).layer_count
    if not isinstance(window, int) or not 1 <= window <= count:
        raise InputError(f"window={window!r}: give 1 to {count} layers")
    firsts = range(count - window + 1)
    edges = [Edges(queries, keys, range(first, first + window)) for first in firsts]
    found = edge_knockout(vlm, prompt, response, edges).rename(edges="first_layer")
    return found.assign_coords(first_layer=list(firsts)).assign_attrs(
        window=window, queries=str(queries), keys=str(keys)
    )


@torch.no_grad()
def looking_heads(
    vlm: VLM,
    prompt: Prompt,
    response: Response,
    steps: Sequence[int],
    *,
    queries: Positions = STEPS,
) -> xr.Dataset:
    """Rank heads by what their knock-out does to some tokens, beside their attention to the image.

    Parameters
    ----------
    vlm, prompt, response
        As in ``edge_knockout``.
    steps
        The steps whose tokens count, such as those that state a fact.
    queries
        Which rows of a head do not see the image.

    Returns
    -------
    xarray.Dataset
        ``change[layer, head]``: log-probability (nats) of these tokens when one head does not see
        the image, minus that without a cut, mean over the steps; ``mass[layer, head]``: fraction of
        attention mass on visual keys, mean over the rows of the response; ``all_heads``, the
        change with all heads cut. The attribute ``rho`` is Spearman's rank correlation of
        ``-change`` and ``mass`` over heads.

    Raises
    ------
    InputError
        If there is no step, or one that the response lacks; or as in ``edge_knockout``.
    """
    whole = TextPass(vlm, prompt, response)
    whole.check_image()
    if not len(steps):
        raise InputError("no step was given: name at least one whose token counts")
    places = [whole.row(step) - whole.prompt_length + 1 for step in steps]
    layers, heads = whole.parts.layer_count, whole.parts.head_count
    pairs = [(layer, head) for layer in range(layers) for head in range(heads)]
    edges = [Edges(queries, "visual", heads=[pair]) for pair in pairs]
    found = _knocked_out(whole, [*edges, Edges(queries, "visual")])
    change = found["change"].values[:, places].mean(-1)
    mass = _visual_mass(whole)
    rho = spearman(-change[:-1], mass.ravel())
    return xr.Dataset(
        {
            "change": (("layer", "head"), change[:-1].reshape(layers, heads), {"units": "nats"}),
            "mass": (("layer", "head"), mass, {"units": "1"}),
            "all_heads": ((), float(change[-1]), {"units": "nats"}),
        },
        {"layer": range(layers), "head": range(heads)},
        {"model": vlm.name, "steps": [int(step) for step in steps], "rho": rho},
    )


def _visual_mass(whole: TextPass) -> np.ndarray:
    """Mass on visual keys [layers, heads], mean over the rows that predict the response."""
    rows = torch.arange(whole.prompt_length - 1, whole.length)
    found: dict[int, np.ndarray] = {}

    def see(seen: LayerAttention) -> None:
        total = torch.zeros(seen.query.shape[1], device=seen.query.device)
        for some in rows.split(max(1, CHUNK_ELEMENTS // (len(total) * whole.length))):
            total += head_weights(seen, some)[..., whole.visual_slots].sum((-1, -2))
        found[seen.layer] = (total / len(rows)).cpu().numpy()

    with whole.attention(see):
        whole.run(rows=[0])
    return np.stack([found[layer] for layer in sorted(found)])


class _Cut:
    """Hides edges from a pass: the outputs of the heads are replaced in the rows that have any."""

    def __init__(self, whole: TextPass, edges: Edges) -> None:
        self._whole = whole
        rows, columns = (_slots(whole, which) for which in (edges.queries, edges.keys))
        self._rows = rows.unique()
        self._hidden = torch.zeros(whole.length, dtype=torch.bool)
        self._hidden[columns] = True
        self._heads = select_heads(
            edges.layers, edges.heads, whole.parts.layer_count, whole.parts.head_count
        )
        self._seen: dict[int, LayerAttention] = {}
        self._values: dict[int, torch.Tensor] = {}

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the pass without the edges; see ``TextPass.read``."""
        hooks: list[Hook] = []
        for layer in self._heads:
            block = self._whole.parts.blocks[layer]
            hooks.append((block.values, "post", partial(self._see_values, layer)))
            hooks.append((block.output, "pre", partial(self._replace, layer)))
        with self._whole.attention(self._see):
            return self._whole.read(hooks, first_layer=min(self._heads))

    def _see(self, seen: LayerAttention) -> None:
        if seen.layer in self._heads:
            self._seen[seen.layer] = seen

    def _see_values(
        self, layer: int, _module: Any, _args: tuple, _options: dict, output: torch.Tensor
    ) -> None:
        self._values[layer] = output[0]

    def _replace(self, layer: int, _module: Any, args: tuple, options: dict) -> Any:
        states = args[0].clone()
        seen, values = self._seen.pop(layer), self._values.pop(layer)
        row = int(self._rows[-1])
        check_output(seen, values, row, states[0, row])
        heads = list(self._heads[layer])
        changed = output_without_keys(seen, values, heads, self._rows, self._hidden)
        by_head = states[0].unflatten(-1, (self._whole.parts.head_count, -1))
        by_head[self._rows[:, None], heads] = changed.to(states.dtype)
        return (states, *args[1:]), options


def _slots(whole: TextPass, which: Positions) -> torch.Tensor:
    """Return the slots that a segment, ``steps`` or a list names."""
    if not isinstance(which, str):
        found: Any = np.array(list(which))
        if (
            not len(found)
            or found.dtype.kind not in "iu"
            or not ((found >= 0) & (found < whole.length)).all()
        ):
            raise InputError(f"slots {list(which)!r}: give some from 0 to {whole.length - 1}")
        return torch.from_numpy(found.astype(np.int64))
    if which == STEPS:
        return torch.arange(whole.prompt_length - 1, whole.length)
    if which not in SEGMENTS:
        raise InputError(f"{which!r} is no segment: use {STEPS}, {', '.join(SEGMENTS)} or slots")
    found = np.flatnonzero(whole.segments == which)
    if not len(found):
        raise InputError(f"the prompt and response have no key of segment {which!r}")
    return torch.from_numpy(found)


__all__ = ["Edges", "edge_knockout", "looking_heads", "window_sweep"]
