"""``attnlens.record``: record one generation inside a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.models.families import FAMILIES, parts_of
from attnlens.models.family import Parts
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import KeyLayout, key_layout
from attnlens.recording.maps import choose_heads, is_small
from attnlens.recording.probe import probe
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.tap import attach, attention_implementation, detach
from attnlens.recording.trace import Trace
from attnlens.recording.traces import Origin, build_traces

PROMPT_ROWS = ("last", "query", "all")


class Recorder:
    """Records what happens on a model inside a ``with`` block; made by ``attnlens.record``."""

    def __init__(
        self,
        parts: Parts,
        recorder: AttentionRecorder,
        origin: Origin,
        *,
        whole_prompt: bool = False,
    ) -> None:
        self._parts = parts
        self._recorder = recorder
        self._origin = origin
        self._whole_prompt = whole_prompt
        ids = [p.inputs["input_ids"] for p in origin.prompts]
        self._watch = GenerateWatch(recorder.layout.prompt_length, ids)
        self._implementation = ""
        self._open = False
        self._traces: list[Trace] | None = None

    def __enter__(self) -> Recorder:
        """Attach to the model."""
        if self._implementation:
            raise RuntimeError("a recorder is used once: call attnlens.record(...) again")
        attach(self._parts, self._recorder, self._watch)
        self._implementation = attention_implementation(self._parts)
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Leave the model as it was found, then compute what still waits."""
        self._open = False
        detach(self._parts, self._recorder)
        try:
            self._recorder.flush()
        except RuntimeError:
            if kind is None:  # else the error that ended the block is the one to show
                raise

    @property
    def traces(self) -> list[Trace]:
        """One trace per generated sequence, in the order of the batch.

        Raises
        ------
        RuntimeError
            If the block is still open, or nothing was generated inside it.
        """
        if self._open:
            raise RuntimeError("the trace is ready when the `with` block has ended")
        if self._traces is None:
            self._traces = build_traces(
                self._recorder,
                self._watch,
                self._origin,
                self._parts,
                implementation=self._implementation,
                whole_prompt=self._whole_prompt,
            )
        return self._traces

    @property
    def trace(self) -> Trace:
        """The trace, where one sequence was generated; see ``traces``."""
        traces = self.traces
        if len(traces) != 1:
            raise RuntimeError(f"{len(traces)} sequences were generated: use recorder.traces")
        return traces[0]


def record(
    model: Any,
    prompt: Prompt | PromptBatch | Any,
    *,
    layers: Iterable[int] | None = None,
    visual_map: bool | None = None,
    map_heads: Iterable[tuple[int, int]] | None = None,
    prompt_rows: str = "last",
    every: int = 32,
    tokenizer: Any = None,
    seed: int | None = None,
) -> Recorder:
    """Record the attention of one generation, or of one forward pass.

    The text layers keep their attention function, and tokens are those of a run without
    recording. Cost: one copy of a query per layer and step, and one matrix product per layer every
    ``every`` steps. Memory: layers x heads x segments x 4 bytes a step, and with the map layers x
    visual tokens x 4 bytes more; where a layer attends to a window, also the keys of that window,
    which its cache drops before the product.

    Parameters
    ----------
    model
        What ``attnlens.load`` returns, or a bare Hugging Face model of a supported family.
    prompt
        What ``vlm.prompt`` or ``vlm.batch`` returns; for a bare model one segment name per prompt
        key (``attnlens.segments``), or a list of them for a left-padded batch.
    layers
        Indices of the layers to record (negative ones count from the end); all when not given.
    visual_map
        Whether to keep the weight of each visual token, mean over heads, by step and layer. When
        not given, it is kept while it is small: if layers x visual tokens x steps x prompts x 4
        bytes is at most 64 MiB. Steps are 1,024 here, since the length of the response is not
        known yet, and in ``attnlens.run`` and ``attnlens.replay`` those of the longest response.
    map_heads
        (layer, head) pairs, counted from 0, for which the weight of each visual token is kept.
    prompt_rows
        Which prompt rows are recorded: ``"last"`` (step 0 alone), ``"query"`` (also those of the
        user's text) or ``"all"``.
    every
        How many steps wait before their mass is computed.
    tokenizer
        For a bare model: gives the tokens their text.
    seed
        Noted in the trace; ``attnlens.run`` sets it for you.

    Returns
    -------
    Recorder
        A context manager with ``trace`` and ``traces`` once the block has ended. Supported are
        greedy and sampled generation, also several return sequences, with a dynamic or static
        cache or none; whatever reorders or crops the cache is refused.

    Raises
    ------
    InputError
        If the model is not supported, a layer or head is not there or given twice, the prompt
        holds no visual token, or a setting is unknown.

    Examples
    --------
    >>> with attnlens.record(vlm, prompt) as recorder:  # doctest: +SKIP
    ...     vlm.model.generate(**prompt.inputs, max_new_tokens=256)
    >>> recorder.trace  # doctest: +SKIP
    """
    is_vlm = isinstance(model, VLM)
    bare = _bare(model)
    parts = parts_of(bare)
    layout = layout_of(prompt)
    if not (layout.visual_slots >= 0).any():
        raise InputError(
            "the prompt has no visual token, so there is no visual mass to record: "
            "give a prompt with an image"
        )
    if prompt_rows not in PROMPT_ROWS:
        raise InputError(
            f"unknown prompt_rows {prompt_rows!r}: use one of {', '.join(PROMPT_ROWS)}"
        )
    family = FAMILIES.get(parts.generator.config.model_type)
    if family is None:
        probe(parts)
    if prompt_rows != "last" and family is not None and family.both_ways:
        raise InputError(
            f"prompt_rows={prompt_rows!r}: tokens of this model's prompt see later ones; use 'last'"
        )
    if every < 1:
        raise InputError(f"every={every}: give a number of steps of at least 1")
    chosen = choose_layers(layers, parts.layer_count, parts.without_attention)
    heads = choose_heads(map_heads, chosen, parts.head_count)
    if visual_map is None:
        visual_map = _is_small(layout, chosen)
    recorder = AttentionRecorder(
        layout,
        {layer: parts.windows[layer] for layer in chosen},
        visual_map=visual_map,
        prompt_positions=_prompt_positions(layout, prompt_rows),
        every=every,
        map_heads=heads,
    )
    name = model.name if is_vlm else ""
    origin = Origin(
        name or getattr(parts.generator.config, "_name_or_path", "") or type(bare).__name__,
        model.tokenizer if is_vlm else tokenizer,
        prompts_of(prompt),
        seed,
    )
    return Recorder(parts, recorder, origin, whole_prompt=prompt_rows == "all")


def with_map(
    model: Any, prompt: Prompt | PromptBatch | Any, steps: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings of ``record`` that say whether the map is kept.

    ``steps`` is the length of the longest response, which ``record`` cannot know.
    """
    if settings.get("visual_map") is not None:
        return dict(settings)
    layers = settings.get("layers")
    layers = list(layers) if isinstance(layers, Iterable) else layers  # read twice
    parts = parts_of(_bare(model))
    chosen = choose_layers(layers, parts.layer_count, parts.without_attention)
    kept = _is_small(layout_of(prompt), chosen, steps)
    return {**settings, "layers": layers, "visual_map": kept}


def _bare(model: Any) -> Any:
    return model.model if isinstance(model, VLM) else model


def _is_small(layout: KeyLayout, layers: Sequence[int], steps: int | None = None) -> bool:
    return is_small(len(layers), layout.visual_slots.shape[1], steps, layout.batch)


def layout_of(prompt: Prompt | PromptBatch | Any) -> KeyLayout:
    """Return the layout of the keys of a prompt, a batch, or bare segment names."""
    if isinstance(prompt, Prompt | PromptBatch):
        return key_layout(prompt.segments, np.atleast_2d(prompt.image_of_key))
    return key_layout(prompt)


def prompts_of(prompt: Prompt | PromptBatch | Any) -> tuple[Prompt, ...]:
    """Return the prompts of a batch, or the one; none for bare segment names."""
    return (prompt,) if isinstance(prompt, Prompt) else tuple(getattr(prompt, "prompts", ()))


def choose_layers(
    layers: Iterable[int] | None, count: int, without: Sequence[int] = ()
) -> list[int]:
    """Return the layers to record, in order: those named, if they are there, or all.

    ``without`` are layers without softmax attention, which cannot be recorded.
    """
    if layers is None:
        return [layer for layer in range(count) if layer not in without]
    chosen = list(layers)
    for layer in chosen:
        if not isinstance(layer, int | np.integer) or not -count <= layer < count:
            raise InputError(f"there is no layer {layer!r}: the model has layers 0 to {count - 1}")
    if not chosen:
        raise InputError("layers is empty: name at least one layer")
    found = sorted({int(layer) % count for layer in chosen})
    wrong = [layer for layer in found if layer in without]
    if wrong:
        raise InputError(f"layer {wrong[0]} attends without softmax: there is no mass to record")
    return found


def _prompt_positions(layout: KeyLayout, which: str) -> list[int]:
    if which == "last":
        return []
    if which == "query":
        return np.flatnonzero((layout.segments == "query").any(axis=0)).tolist()
    return list(range(layout.prompt_length))
