"""``attnlens.record``: record one generation inside a ``with`` block."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from attnlens._version import versions
from attnlens.errors import InputError
from attnlens.models.families import parts_of
from attnlens.models.family import Parts
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.recording.assemble import Generated, Recording, assemble
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import KeyLayout, key_layout
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.response import UNKNOWN, special_ids, token_stream, token_texts
from attnlens.recording.store import as_plain
from attnlens.recording.tap import attach, attention_implementation, detach
from attnlens.recording.trace import Trace

PROMPT_ROWS = ("last", "query", "all")


@dataclass(frozen=True)
class Origin:
    """What a recording was made of; ``prompts`` is empty where only segments are known."""

    name: str
    tokenizer: Any = None
    prompts: tuple[Prompt, ...] = ()
    seed: int | None = None

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Texts of token ids."""
        if self.tokenizer is None:
            return ["" if i == UNKNOWN else f"<{i}>" for i in ids]
        return token_texts(self.tokenizer, ids)


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
        self._layout = recorder.layout
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
            self._traces = self._build()
        return self._traces

    @property
    def trace(self) -> Trace:
        """The trace, where one sequence was generated; see ``traces``."""
        traces = self.traces
        if len(traces) != 1:
            raise RuntimeError(f"{len(traces)} sequences were generated: use recorder.traces")
        return traces[0]

    def _build(self) -> list[Trace]:
        rows = self._recorder.rows()
        first = next(iter(rows.values()))
        steps = first.positions[first.positions >= self._layout.prompt_length - 1]
        if not len(steps):
            raise RuntimeError(
                "nothing was recorded: call model.generate(**prompt.inputs) inside the block"
            )
        batch = first.mass.shape[0]
        inserted = self._recorder.inserted
        # the response's tokens are counted without inserted ones
        places = steps - inserted.before(steps)
        slots = np.array(list(self._recorder.ids), dtype=np.int64)
        fed_places = (slots - inserted.before(slots)).tolist()
        fed = dict(zip(fed_places, (i.tolist() for i in self._recorder.ids.values()), strict=True))
        watch = self._watch
        if watch.sequences is not None:
            self._check_steps(places, tuple(watch.sequences.shape), batch)
        recording = Recording(self._layout, rows, inserted, self._whole_prompt)
        traces = []
        for row in range(batch):
            prompt_row = row // (batch // self._layout.batch)
            prompt = self._origin.prompts[prompt_row] if self._origin.prompts else None
            generated = None if watch.sequences is None else watch.sequences[row].tolist()
            stream = token_stream(
                places,
                {slot: ids[row % len(ids)] for slot, ids in fed.items()},
                generated,
                self._layout.prompt_length,
                watch.end_ids,
                watch.pad_ids if batch > 1 else frozenset(),
            )
            one = Generated(row, prompt_row, stream)
            if prompt is not None:
                texts = self._origin.texts(prompt.inputs["input_ids"][0].tolist())
                one = replace(one, prompt_texts=texts, grids=prompt.grids)
            attrs = as_plain(self._provenance(prompt))
            traces.append(Trace(assemble(recording, one, self._origin.texts, attrs)))
        return traces

    def _check_steps(self, places: np.ndarray, generated: tuple[int, ...], batch: int) -> None:
        """Check that there is a step for each token that ``generate`` returned."""
        first = self._layout.prompt_length - 1
        if generated != (batch, len(places)) or not np.array_equal(
            places, np.arange(first, first + len(places))
        ):
            raise RuntimeError(
                f"generate returned {generated[0]} sequences of {generated[1]} tokens, but "
                f"{len(places)} steps of {batch} were recorded: some passes went past the "
                "recording, or did not produce a token; record one plain call of model.generate"
            )

    def _provenance(self, prompt: Prompt | None) -> dict[str, Any]:
        config = self._parts.generator.config
        plain = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
        weight = next(self._parts.text.parameters())
        return {
            "model": self._origin.name,
            "config_hash": digest.hexdigest()[:16],
            "versions": {**versions(), "python": platform.python_version()},
            "dtype": str(weight.dtype).removeprefix("torch."),
            "attention": self._implementation,
            "device": str(weight.device),
            "mode": "" if prompt is None else prompt.mode,
            "question": "" if prompt is None else prompt.question,
            "prompt": "" if prompt is None else prompt.text,
            "generation": self._watch.settings,
            "seed": self._origin.seed,
            "images": [] if prompt is None else [i.as_dict() for i in prompt.images],
            "special_token_ids": sorted(special_ids(self._origin.tokenizer)),
        }


def record(
    model: Any,
    prompt: Prompt | PromptBatch | Any,
    *,
    layers: Iterable[int] | None = None,
    visual_map: bool = False,
    prompt_rows: str = "last",
    every: int = 32,
    tokenizer: Any = None,
    seed: int | None = None,
) -> Recorder:
    """Record the attention of one generation, or of one forward pass.

    The text layers keep their attention function, and tokens are those of a run without
    recording. Cost: one copy of a query per layer and step, and one matrix product per layer every
    ``every`` steps. Memory: layers x heads x segments x 4 bytes a step.

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
        Also keep the weight of each visual token, mean over heads, by step and layer.
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
        If the model is not supported, a layer is not there, the prompt holds no visual token, or
        a setting is unknown.

    Examples
    --------
    >>> with attnlens.record(vlm, prompt) as recorder:  # doctest: +SKIP
    ...     vlm.model.generate(**prompt.inputs, max_new_tokens=256)
    >>> recorder.trace  # doctest: +SKIP
    """
    is_vlm = isinstance(model, VLM)
    bare = model.model if is_vlm else model
    parts = parts_of(bare)
    if isinstance(prompt, Prompt | PromptBatch):
        layout = key_layout(prompt.segments, np.atleast_2d(prompt.image_of_key))
    else:
        layout = key_layout(prompt)
    if not (layout.visual_slots >= 0).any():
        raise InputError(
            "the prompt has no visual token, so there is no visual mass to record: "
            "give a prompt with an image"
        )
    if prompt_rows not in PROMPT_ROWS:
        raise InputError(
            f"unknown prompt_rows {prompt_rows!r}: use one of {', '.join(PROMPT_ROWS)}"
        )
    if every < 1:
        raise InputError(f"every={every}: give a number of steps of at least 1")
    recorder = AttentionRecorder(
        layout,
        choose_layers(layers, parts.layer_count),
        visual_map=visual_map,
        prompt_positions=_prompt_positions(layout, prompt_rows),
        every=every,
    )
    prompts = (prompt,) if isinstance(prompt, Prompt) else getattr(prompt, "prompts", ())
    name = model.name if is_vlm else ""
    origin = Origin(
        name or getattr(parts.generator.config, "_name_or_path", "") or type(bare).__name__,
        model.tokenizer if is_vlm else tokenizer,
        tuple(prompts),
        seed,
    )
    return Recorder(parts, recorder, origin, whole_prompt=prompt_rows == "all")


def choose_layers(layers: Iterable[int] | None, count: int) -> list[int]:
    """Return the layers to record, in order: those named, if they are there, or all."""
    if layers is None:
        return list(range(count))
    chosen = list(layers)
    for layer in chosen:
        if not isinstance(layer, int | np.integer) or not -count <= layer < count:
            raise InputError(f"there is no layer {layer!r}: the model has layers 0 to {count - 1}")
    if not chosen:
        raise InputError("layers is empty: name at least one layer")
    return sorted({int(layer) % count for layer in chosen})


def _prompt_positions(layout: KeyLayout, which: str) -> list[int]:
    if which == "last":
        return []
    if which == "query":
        return np.flatnonzero((layout.segments == "query").any(axis=0)).tolist()
    return list(range(layout.prompt_length))
