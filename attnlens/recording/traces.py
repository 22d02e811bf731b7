"""From what was recorded of a generated batch to its traces."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from attnlens._version import versions
from attnlens.models.families import is_verified
from attnlens.models.family import Parts
from attnlens.models.prompt import Prompt
from attnlens.recording.assemble import Generated, Recording, assemble
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import InsertedKeys, KeyLayout
from attnlens.recording.mass import RecordedRows
from attnlens.recording.response import UNKNOWN, special_ids, token_stream, token_texts
from attnlens.recording.store import as_plain
from attnlens.recording.trace import Trace


class Recorded(Protocol):
    """What was recorded of a generation.

    Attributes
    ----------
    layout
        Which prompt key belongs to which column.
    inserted
        The keys that were inserted.
    ids
        Token ids [batch] fed in at a key slot, for response slots and the last prompt slot.
    map_heads
        Heads, by layer, whose maps were kept.
    """

    layout: KeyLayout
    inserted: InsertedKeys
    ids: dict[int, torch.Tensor]
    map_heads: Mapping[int, Sequence[int]]

    def rows(self) -> dict[int, RecordedRows]:
        """Everything recorded, by layer."""


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


def build_traces(
    recorded: Recorded,
    watch: GenerateWatch,
    origin: Origin,
    parts: Parts,
    *,
    implementation: str,
    whole_prompt: bool = False,
) -> list[Trace]:
    """Build one trace per generated sequence, in the order of the batch.

    Parameters
    ----------
    recorded, watch
        The attention, and what is known of the call of ``generate``.
    origin, parts
        What was recorded, and the parts of its model.
    implementation
        Name of the attention implementation.
    whole_prompt
        Whether every prompt row was asked for, or only those of the user's text.

    Raises
    ------
    RuntimeError
        If nothing was recorded, or not one step for each generated token.
    """
    layout, inserted = recorded.layout, recorded.inserted
    rows = recorded.rows()
    first = next(iter(rows.values()))
    steps = first.positions[first.positions >= layout.prompt_length - 1]
    if not len(steps):
        raise RuntimeError(
            "nothing was recorded: call model.generate(**prompt.inputs) inside the block"
        )
    batch = first.mass.shape[0]
    # the response's tokens are counted without inserted ones
    places = steps - inserted.before(steps)
    slots = np.array(list(recorded.ids), dtype=np.int64)
    fed_places = (slots - inserted.before(slots)).tolist()
    fed = dict(zip(fed_places, (i.tolist() for i in recorded.ids.values()), strict=True))
    if watch.sequences is not None:
        _check_steps(layout, places, tuple(watch.sequences.shape), batch)
    recording = Recording(layout, rows, inserted, whole_prompt, recorded.map_heads)
    traces = []
    for row in range(batch):
        prompt_row = row // (batch // layout.batch)
        prompt = origin.prompts[prompt_row] if origin.prompts else None
        generated = None if watch.sequences is None else watch.sequences[row].tolist()
        stream = token_stream(
            places,
            {slot: ids[row % len(ids)] for slot, ids in fed.items()},
            generated,
            layout.prompt_length,
            watch.end_ids,
            watch.pad_ids if batch > 1 else frozenset(),
        )
        one = Generated(row, prompt_row, stream)
        if prompt is not None:
            texts = origin.texts(prompt.inputs["input_ids"][0].tolist())
            one = replace(one, prompt_texts=texts, images=prompt.images)
        attrs = {
            **_provenance(origin, parts, prompt),
            "attention": implementation,
            "generation": watch.settings,
        }
        traces.append(Trace(assemble(recording, one, origin.texts, as_plain(attrs))))
    return traces


def _check_steps(
    layout: KeyLayout, places: np.ndarray, generated: tuple[int, ...], batch: int
) -> None:
    """Check that there is a step for each token that ``generate`` returned."""
    first = layout.prompt_length - 1
    if generated != (batch, len(places)) or not np.array_equal(
        places, np.arange(first, first + len(places))
    ):
        raise RuntimeError(
            f"generate returned {generated[0]} sequences of {generated[1]} tokens, but "
            f"{len(places)} steps of {batch} were recorded: some passes went past the "
            "recording, or did not produce a token; record one plain call of model.generate"
        )


def _provenance(origin: Origin, parts: Parts, prompt: Prompt | None) -> dict[str, Any]:
    plain = {k: v for k, v in parts.generator.config.to_dict().items() if not k.startswith("_")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    weight = next(parts.text.parameters())
    return {
        "model": origin.name,
        "config_hash": digest.hexdigest()[:16],
        "versions": {**versions(), "python": platform.python_version()},
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "mode": "" if prompt is None else prompt.mode,
        "question": "" if prompt is None else prompt.question,
        "prompt": "" if prompt is None else prompt.text,
        "seed": origin.seed,
        "images": [] if prompt is None else [i.as_dict() for i in prompt.images],
        "windows": {str(i): size for i, size in enumerate(parts.windows) if size is not None},
        "verified_family": is_verified(parts),
        "layers_without_attention": list(parts.without_attention),
        "special_token_ids": sorted(special_ids(origin.tokenizer)),
    }
