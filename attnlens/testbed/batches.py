"""Training batches: samples turned into tensors, each batch a function of (seed, step) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attnlens.testbed.answers import (
    LISTING_QUESTION,
    TALLY_QUESTION,
    Part,
    list_marks,
    tally,
    text_of,
)
from attnlens.testbed.samples import HELD_OUT, make_sample
from attnlens.testbed.scenes import MAX_OBJECTS, Scene, random_scene
from attnlens.vlm.modes import messages, user_text

IGNORED = -100
"""Label of positions that carry no loss."""

PERCEPTION_BATCH = 48
ANSWER_BATCH = 24


def _object_count(rng: np.random.Generator) -> int:
    """Few objects mixed with many: a single one teaches its attributes, many teach the search."""
    draw = rng.random()
    if draw < 0.03:
        return 0
    if draw < 0.4:
        return 1
    return int(rng.integers(2, 4) if draw < 0.6 else rng.integers(4, MAX_OBJECTS + 1))


def _perception_example(rng: np.random.Generator) -> tuple[Scene, str, list[Part]]:
    draw = rng.random()
    if draw < 0.45:
        scene = random_scene(rng, objects=_object_count(rng))
        return scene, LISTING_QUESTION, list_marks(scene)
    if draw < 0.75:
        scene = random_scene(rng, objects=_object_count(rng))
        return scene, TALLY_QUESTION, tally(scene)
    sample = make_sample(rng, "normal", objects=max(1, _object_count(rng)))
    return sample.scene, user_text(sample.question.text, "normal"), list(sample.parts)


def _answer_example(rng: np.random.Generator) -> tuple[Scene, str, list[Part]]:
    draw = rng.random()
    if draw < 0.2:
        return _perception_example(rng)
    mode = "back" if draw < 0.7 else "cot"
    low = 0 if rng.random() < 0.1 else 2
    sample = make_sample(rng, mode, objects=int(rng.integers(low, MAX_OBJECTS + 1)))
    return sample.scene, user_text(sample.question.text, mode), list(sample.parts)


class Batches(Dataset):
    """Batches by step number.

    Parameters
    ----------
    processor
        The testbed's processor.
    seed
        Seed of the run, below ``HELD_OUT``.
    steps
        Total number of steps.
    perception_steps
        How many of them come first with short perception questions alone.
    first
        Number of the first step to deliver (when a run is taken up again).
    """

    def __init__(
        self, processor: Any, seed: int, steps: int, perception_steps: int, first: int = 0
    ) -> None:
        assert 0 <= seed < HELD_OUT
        self.processor = processor
        self.seed = seed
        self.steps = steps
        self.perception_steps = perception_steps
        self.first = first

    def __len__(self) -> int:
        """Count the steps that are left."""
        return self.steps - self.first

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Build the batch of step ``first + index``."""
        step = self.first + index
        if step < self.perception_steps:
            make, size = _perception_example, PERCEPTION_BATCH
        else:
            make, size = _answer_example, ANSWER_BATCH
        examples = [make(np.random.default_rng((self.seed, step, i))) for i in range(size)]
        return collate(self.processor, examples)


def collate(processor: Any, examples: list[tuple[Scene, str, list[Part]]]) -> dict[str, Any]:
    """Turn (scene, user text, answer parts) into one right-padded batch.

    Returns
    -------
    dict
        ``input_ids``, ``mm_token_type_ids`` [batch, length]; ``labels`` (``IGNORED`` outside
        answers) and ``must_look`` (bool), both aligned with ``input_ids``; ``pixel_values``,
        ``image_grid_thw``.
    """
    tokenizer = processor.tokenizer
    images = [scene.draw() for scene, _, _ in examples]
    vision = processor.image_processor(images, do_resize=False, return_tensors="pt")
    rows = []
    for (scene, text, parts), grid in zip(examples, vision["image_grid_thw"], strict=True):
        del scene
        prompt = tokenizer.apply_chat_template(
            messages(text, images=1), tokenize=False, add_generation_prompt=True
        )
        count = int(grid.prod()) // processor.image_processor.merge_size**2
        prompt = prompt.replace(processor.image_token, processor.image_token * count)
        rows.append(_encode(tokenizer, prompt, parts))
    length = max(len(ids) for ids, _, _ in rows)
    batch = len(rows)
    ids = torch.full((batch, length), tokenizer.pad_token_id)
    labels = torch.full((batch, length), IGNORED)
    must_look = torch.zeros((batch, length), dtype=torch.bool)
    for i, (row, prompt_length, looks) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt_length : len(row)] = ids[i, prompt_length : len(row)]
        must_look[i, : len(row)] = torch.tensor(looks)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == processor.image_token_id).int(),
        "labels": labels,
        "must_look": must_look,
        "pixel_values": vision["pixel_values"],
        "image_grid_thw": vision["image_grid_thw"],
    }


def _encode(tokenizer: Any, prompt: str, parts: list[Part]) -> tuple[list[int], int, list[bool]]:
    """Token ids of prompt and answer, the prompt's length, and which tokens must be looked up."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    coded = tokenizer(
        text_of(parts) + "<|im_end|>", add_special_tokens=False, return_offsets_mapping=True
    )
    looks = np.zeros(len(text_of(parts)) + 16, dtype=bool)
    start = 0
    for part in parts:
        looks[start : start + len(part.text)] = part.must_look
        start += len(part.text)
    flags = [bool(looks[a:b].any()) for a, b in coded["offset_mapping"]]
    ids = [*prompt_ids, *coded["input_ids"]]
    return ids, len(prompt_ids), [False] * len(prompt_ids) + flags
