"""Attention knock-out by edge: these queries do not see these keys, in these layers and heads.

Which layers the image is read in shows when edges are cut in a window of layers at a time (Geva et
al. 2023, arXiv 2304.14767; for vision-language models Zhang et al. 2024, arXiv 2411.18620). Which
heads read it shows when they are cut one head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from attnlens.errors import InputError
from attnlens.interventions.base import Heads, select_heads
from attnlens.interventions.score_editor import additive_mask
from attnlens.lenses.text_pass import Response, TextPass, weights_of_rows
from attnlens.measures.correlation import spearman
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.progress import progress
from attnlens.recording.response import token_texts
from attnlens.recording.tap import LayerAttention, attach_editor, detach_editor
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
        If a segment is unknown or empty, or a slot, layer or head is not there.
    """
    return _knocked_out(TextPass(vlm, prompt, response), edges)


@torch.no_grad()
def _knocked_out(whole: TextPass, edges: Sequence[Edges]) -> xr.Dataset:
    cuts = [_Cut(whole, one) for one in edges]
    base = whole.run()[0].log_softmax(-1)
    own = torch.tensor(whole.ids, device=base.device)[:, None]
    best = base.argmax(-1)
    change, kept = [], []
    for cut in progress(cuts, description="cutting edges"):
        with cut.made():
            logs = whole.run()[0].log_softmax(-1)
        change.append((logs - base).gather(1, own)[:, 0].cpu().numpy())
        kept.append((logs.argmax(-1) == best).cpu().numpy())
    words = np.array(token_texts(whole.vlm.tokenizer, whole.ids), dtype=str)
    return xr.Dataset(
        {
            "change": (("edges", "step"), np.array(change), {"units": "nats"}),
            "kept": (("edges", "step"), np.array(kept)),
            "log_probability": ("step", base.gather(1, own)[:, 0].cpu().numpy()),
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
        weights = weights_of_rows(seen, rows)
        found[seen.layer] = weights[..., whole.visual_slots].sum(-1).mean(-1).cpu().numpy()

    with whole.attention(see):
        whole.run(rows=[0])
    return np.stack([found[layer] for layer in sorted(found)])


class _Cut:
    """Hides edges from a pass; see ``attnlens.recording.tap.Editor``."""

    def __init__(self, whole: TextPass, edges: Edges) -> None:
        self._parts = whole.parts
        rows, columns = (_slots(whole, which) for which in (edges.queries, edges.keys))
        hidden = torch.zeros((whole.length, whole.length), dtype=torch.bool)
        hidden[rows[:, None], columns] = True
        self._hidden = hidden.fill_diagonal_(False)
        self._heads = select_heads(
            edges.layers, edges.heads, whole.parts.layer_count, whole.parts.head_count
        )

    @contextmanager
    def made(self) -> Iterator[None]:
        """Cut the edges while a block runs passes."""
        attach_editor(self._parts, self)
        try:
            yield
        finally:
            detach_editor(self._parts, self)

    def begin_pass(self, tokens: int, past: int) -> None:
        """Do nothing."""

    def edit(self, seen: LayerAttention) -> torch.Tensor | None:
        """Return the mask without the edges."""
        heads = self._heads.get(seen.layer)
        if heads is None:
            return seen.mask
        mask = additive_mask(seen.mask, seen.query, seen.key, 0)
        mask = mask.expand(-1, seen.query.shape[1], -1, -1).clone()
        mask[:, list(heads)] = mask[:, list(heads)].masked_fill(
            self._hidden.to(mask.device), float("-inf")
        )
        return mask


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
