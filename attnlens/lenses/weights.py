"""Attention weights that another library gives, as the rows that a trace is built of.

Mass is added up here apart from ``attnlens.recording.mass``, so that the traces can serve as an
independent check of the recorder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import InsertedKeys
from attnlens.recording.maps import choose_heads, is_small
from attnlens.recording.mass import RecordedRows
from attnlens.recording.record import choose_layers, layout_of, prompts_of
from attnlens.recording.trace import Trace
from attnlens.recording.traces import Origin, build_traces


class WeightRows:
    """Sums attention weights by segment; see ``attnlens.recording.traces.Recorded``.

    Parameters
    ----------
    prompt
        What is answered.
    layers
        Indices of the layers.
    visual_map
        Whether to keep the weight of each visual key.
    map_heads
        Heads, by layer, for which the weight of each visual key is kept.
    """

    def __init__(
        self,
        prompt: Prompt | PromptBatch,
        layers: Iterable[int],
        visual_map: bool,
        map_heads: Mapping[int, Sequence[int]],
    ) -> None:
        self.layout = layout_of(prompt)
        self.inserted = InsertedKeys()
        self.ids: dict[int, torch.Tensor] = {}
        self.map_heads = map_heads
        self._visual_map = visual_map
        self._steps: dict[int, list[tuple[int, Any, Any, Any]]] = {layer: [] for layer in layers}
        self._by_head: dict[int, list[Any]] = {layer: [] for layer in map_heads}

    @property
    def layers(self) -> list[int]:
        """Indices of the layers."""
        return list(self._steps)

    def add(self, layer: int, weights: torch.Tensor) -> None:
        """Add up the last row of a pass.

        Parameters
        ----------
        layer
            Index of the layer.
        weights
            [batch, heads, rows, keys]: softmax rows, each of which adds up to 1.

        Raises
        ------
        InputError
            If they do not.
        """
        row = weights[:, :, -1].detach().double().cpu().numpy()
        if not np.allclose(row.sum(-1), 1.0, atol=1e-2):  # bfloat16 rounds each weight
            raise InputError(
                f"the attention weights of layer {layer} add up to {row.sum(-1).min():.3f}, not to "
                "1: these are no softmax rows, or a hook changed them"
            )
        batch, heads, length = row.shape
        layout = self.layout
        segment = np.full((batch, length), layout.response_column)
        known = min(length, layout.prompt_length)
        segment[:, :known] = layout.columns[:, :known]
        mass = np.zeros((batch, heads, len(layout.names)))
        for column in range(len(layout.names)):
            mass[..., column] = (row * (segment == column)[:, None]).sum(-1)
        slots = layout.visual_slots
        by_head = np.take_along_axis(row, slots.clip(0)[:, None], axis=-1)
        by_head = np.where(slots[:, None] < 0, 0.0, by_head)
        visual = by_head.mean(1)
        if layer in self.map_heads:
            self._by_head[layer].append(by_head[:, list(self.map_heads[layer])])
        self._steps[layer].append((length - 1, mass, visual, (visual > 0).sum(-1)))

    def rows(self) -> dict[int, RecordedRows]:
        """Everything added, by layer: one row for each step."""
        return {layer: self._joined(layer, steps) for layer, steps in self._steps.items()}

    def _joined(self, layer: int, steps: list[tuple[int, Any, Any, Any]]) -> RecordedRows:
        if not steps:
            raise InputError("no attention was seen: nothing was generated")
        positions, mass, visual, nonzero = zip(*steps, strict=True)
        by_head = self._by_head.get(layer)
        return RecordedRows(
            positions=np.array(positions, dtype=np.int64),
            mass=np.stack(mass, axis=1).astype(np.float32),
            visual_weight=np.stack(visual, 1).astype(np.float32) if self._visual_map else None,
            visual_nonzero=np.stack(nonzero, axis=1).astype(np.int32),
            visual_by_head=np.stack(by_head, axis=1).astype(np.float32) if by_head else None,
        )


class Generation:
    """One generation whose attention another library shows.

    Parameters
    ----------
    vlm, prompt
        What is asked, and what answers it.
    layers
        Indices of the layers to record; all when not given.
    visual_map
        Whether to keep the weight of each visual key; None while that is small.
    map_heads
        (layer, head) pairs for which the weight of each visual key is kept; None for no head.
    options
        Those of ``generate``, with ``max_new_tokens``.

    Raises
    ------
    InputError
        If a layer or head is not there, the prompt is none, or an option keeps ``generate`` from
        being recorded.
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: Prompt | PromptBatch,
        layers: Iterable[int] | None,
        visual_map: bool | None,
        map_heads: Iterable[tuple[int, int]] | None,
        options: Mapping[str, Any],
    ) -> None:
        if not isinstance(vlm, VLM) or not isinstance(prompt, Prompt | PromptBatch):
            raise InputError(
                f"record({type(vlm).__name__}, {type(prompt).__name__}): give what attnlens.load "
                "returns, and what vlm.prompt or vlm.batch returns"
            )
        settings = options.get("generation_config")
        for name in ("num_return_sequences", "cache_implementation", "use_cache"):
            given = options.get(name, getattr(settings, name, None))
            if given not in (None, 1, True):
                raise InputError(f"{name}={given!r} is not supported here: use attnlens.record")
        self._origin = Origin(vlm.name, vlm.tokenizer, prompts_of(prompt))
        self._parts = parts_of(vlm.model)
        if any(self._parts.windows):
            raise InputError(
                "some layers of this model attend to a window, which is not supported here: use "
                "attnlens.record"
            )
        chosen = choose_layers(layers, self._parts.layer_count, self._parts.without_attention)
        heads = choose_heads(map_heads, chosen, self._parts.head_count)
        if visual_map is None:
            batch, visual = layout_of(prompt).visual_slots.shape
            visual_map = is_small(len(chosen), visual, options["max_new_tokens"], batch)
        self.weights = WeightRows(prompt, chosen, visual_map, heads)
        ids = [one.inputs["input_ids"] for one in self._origin.prompts]
        self._watch = GenerateWatch(self.weights.layout.prompt_length, ids)
        self._watch.before(self._parts.generator, (), {**prompt.inputs, **options})
        self._last = prompt.inputs["input_ids"][:, -1]

    def traces(self, sequences: torch.Tensor, implementation: str) -> list[Trace]:
        """Build the traces, once ``generate`` has returned.

        Parameters
        ----------
        sequences
            What it returned: ids of prompt and response, [batch, tokens].
        implementation
            What computed the weights.
        """
        self._watch.after(sequences)
        self.weights.ids[self.weights.layout.prompt_length - 1] = self._last
        return build_traces(
            self.weights, self._watch, self._origin, self._parts, implementation=implementation
        )
