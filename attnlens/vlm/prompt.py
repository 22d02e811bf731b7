"""Prompts: what ``generate`` takes, and what each of its keys is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from attnlens.errors import InputError
from attnlens.segments import PADDING
from attnlens.vlm.images import ImageInfo, open_image
from attnlens.vlm.modes import MODES, messages, user_text
from attnlens.vlm.segments import label_segments

if TYPE_CHECKING:
    from attnlens.vlm.load import VLM


@dataclass(frozen=True)
class Prompt:
    """A question about images, ready to run.

    Attributes
    ----------
    inputs
        What ``model.generate(**prompt.inputs)`` takes, on the model's device.
    segments
        str [keys]: the segment of every prompt key (``attnlens.segments``).
    image_of_key
        int [keys]: which image (from 0) a visual key belongs to; -1 for other keys.
    images
        What is known of each image: path, hash, size in pixels, grid of visual tokens.
    mode, question, text
        The mode, the bare question, and the whole prompt text with its placeholders.
    pictures
        The opened images, RGB.
    """

    inputs: dict[str, torch.Tensor]
    segments: np.ndarray
    image_of_key: np.ndarray
    images: tuple[ImageInfo, ...]
    mode: str
    question: str
    text: str
    pictures: tuple[Image.Image, ...] = field(repr=False)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of visual tokens of each image."""
        return tuple((i.rows, i.columns) for i in self.images)

    @property
    def boxes(self) -> tuple[np.ndarray, ...]:
        """Pixel boxes of each image's visual tokens; see ``ImageInfo.boxes``."""
        return tuple(i.boxes() for i in self.images)


@dataclass(frozen=True)
class PromptBatch:
    """Several prompts, padded on the left to one length.

    Attributes
    ----------
    prompts
        The prompts.
    inputs
        What ``model.generate(**batch.inputs)`` takes.
    segments, image_of_key
        As in ``Prompt``, [batch, keys]; padding keys are labelled ``padding``.
    """

    prompts: tuple[Prompt, ...]
    inputs: dict[str, torch.Tensor]
    segments: np.ndarray
    image_of_key: np.ndarray


def build_prompt(
    vlm: VLM,
    image: Any,
    question: str,
    mode: str,
    *,
    system: str | None,
    template: str | None,
) -> Prompt:
    """Build a prompt; see ``VLM.prompt``."""
    text = user_text(question, mode, template)
    tokenizer = vlm.processor.tokenizer
    special_tokens = {vlm.processor.image_token, *tokenizer.all_special_tokens}
    special_tokens |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    for part in (text, system or ""):
        for token in sorted(special_tokens):
            # a fine-tuned model may have the tags of a mode as special tokens
            allowed = token in MODES[mode] or (template is not None and not token.startswith("<|"))
            if token in part and not allowed:
                raise InputError(
                    f"the text holds the model's special token {token!r}: write it another way"
                )
    opened = [open_image(source) for source in _as_list(image)]
    pictures = [picture for picture, _ in opened]
    chat = vlm.processor.apply_chat_template(
        messages(text, len(pictures), system), tokenize=False, add_generation_prompt=True
    )
    try:
        encoded = vlm.processor(
            text=[chat], images=pictures or None, return_tensors="pt", padding=False
        )
    except ValueError as error:
        raise InputError(f"the processor refused the prompt: {error}") from error
    ids = encoded["input_ids"][0].numpy()
    special = vlm.family.special_ids(vlm.model.config)
    segments = label_segments(
        ids,
        visual_ids=(special["image"], special["video"]),
        vision_end_id=special["vision_end"],
    )
    merge = vlm.model.config.vision_config.spatial_merge_size
    infos = []
    for (_, info), grid in zip(opened, encoded.get("image_grid_thw", []), strict=True):
        rows, columns = int(grid[1]) // merge, int(grid[2]) // merge
        infos.append(ImageInfo(info.path, info.sha256, info.width, info.height, rows, columns))
    image_of_key = np.full(len(ids), -1, dtype=np.int64)
    counts = [info.rows * info.columns for info in infos]
    image_of_key[segments == "visual"] = np.repeat(np.arange(len(counts)), counts)
    return Prompt(
        inputs={k: v.to(vlm.model.device) for k, v in encoded.items()},
        segments=segments,
        image_of_key=image_of_key,
        images=tuple(infos),
        mode=mode,
        question=question.strip(),
        text=chat,
        pictures=tuple(pictures),
    )


def _as_list(image: Any) -> list[Any]:
    if image is None:
        return []
    if isinstance(image, str | Path | Image.Image):
        return [image]
    if isinstance(image, Sequence):
        return list(image)
    raise InputError(
        f"an image is given as {type(image).__name__}: give a path, a PIL.Image, or a list of them"
    )


def pad_inputs(rows: Sequence[dict[str, torch.Tensor]], padding_id: int) -> dict[str, torch.Tensor]:
    """Join the inputs of single sequences, padded on the left to one length.

    Parameters
    ----------
    rows
        Each with ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` [1, keys] and, where it
        has images, ``pixel_values`` and ``image_grid_thw``.
    padding_id
        Token id of the padding.
    """
    length = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": padding_id, "attention_mask": 0, "mm_token_type_ids": 0}
    inputs = {
        name: torch.cat(
            [F.pad(row[name], (length - row[name].shape[1], 0), value=value) for row in rows]
        )
        for name, value in fill.items()
    }
    for name in ("pixel_values", "image_grid_thw"):
        found = [row[name] for row in rows if name in row]
        if found:
            inputs[name] = torch.cat(found)
    return inputs


def batch_prompts(prompts: Sequence[Prompt], padding_id: int) -> PromptBatch:
    """Pad prompts on the left to one length; see ``VLM.batch``."""
    if not prompts:
        raise InputError("no prompts were given: give at least one")
    inputs = pad_inputs([p.inputs for p in prompts], padding_id)
    length = inputs["input_ids"].shape[1]
    segments = np.full((len(prompts), length), PADDING, dtype="<U10")
    image_of_key = np.full((len(prompts), length), -1, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        segments[row, length - len(prompt.segments) :] = prompt.segments
        image_of_key[row, length - len(prompt.segments) :] = prompt.image_of_key
    return PromptBatch(tuple(prompts), inputs, segments, image_of_key)
