"""Training batches: examples as tensors. A batch depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from attnlens.models.chat import single_turn
from attnlens.models.family import ImagePiece
from attnlens.models.qwen2_5_vl import multimodal_positions
from attnlens.testbed.model.curriculum import (
    KIND_SHARES,
    STAGES,
    Example,
    Stage,
    answer_example,
    long_example,
    perception_example,
)
from attnlens.testbed.world.answers import VERIFICATION_TAGS, text_of
from attnlens.testbed.world.samples import HELD_OUT
from attnlens.testbed.world.scenes import GRID_SHARES, SIZES, pick_by_share

IGNORED = -100
"""Label of positions without loss."""

DECISIONS = ("yes", "no", "more", "fewer", "present", "absent")
"""Words that decide an answer; as single tokens they would weigh little in the loss."""

PERCEPTION_BATCH = {"small": 48, "medium": 32, "large": 16}
ANSWER_BATCH = {"small": 24, "medium": 20, "large": 14}
LONG_BATCH = 6
"""Examples per batch, by size class, chosen so that all batches cost about the same."""

PIECE, LONG_PIECE = 8, 2
"""Rows that go through the model together. A batch is sorted by length and cut, to pad less."""

PERCEPTION_GRID_SHARES = {"small": 0.8, "medium": 0.15, "large": 0.05}

HIDDEN_SHARE = 0.4
"""Share of pieces in which the predictable words of a verification are written without the image.

A fact can be looked up at the step that states it, or before that at the object's name, and a model
may learn either. If the name sees no image, only the step itself can look the fact up.
"""


@dataclass(eq=False)
class Batches(Dataset):
    """Batches by step number.

    The first ``perception_steps`` of all ``steps`` have short questions only. ``first`` is the step
    to start from when a run is resumed.
    """

    processor: Any
    seed: int
    steps: int
    perception_steps: int
    stages: Sequence[Stage] = (STAGES[0],)
    first: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.seed < HELD_OUT

    def __len__(self) -> int:
        """Return the number of steps left."""
        return self.steps - self.first

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        """Build the batch of step ``first + index``, in pieces of rows of similar length."""
        step = self.first + index
        rng = np.random.default_rng((self.seed, step))
        stage = [stage for stage in self.stages if stage.first <= step][-1]
        kinds = dict(zip(KIND_SHARES, stage.kinds, strict=True))
        make: Callable[..., Example]
        if step < self.perception_steps:
            grid = pick_by_share(rng, PERCEPTION_GRID_SHARES)
            make, size = perception_example, PERCEPTION_BATCH[grid]
        elif (step + 1) % stage.long_every == 0:
            grid = pick_by_share(rng, GRID_SHARES)
            make, size = long_example, LONG_BATCH
        else:
            grid = pick_by_share(rng, GRID_SHARES)
            make, size = answer_example, ANSWER_BATCH[grid]
        # rows from 1, since NumPy makes the batch's own (seed, step) of (seed, step, 0)
        seeds = [(self.seed, step, row) for row in range(1, size + 1)]
        examples = [make(np.random.default_rng(s), grid, kinds) for s in seeds]
        examples.sort(key=_length)
        rows = LONG_PIECE if make is long_example else PIECE
        return [
            collate(
                self.processor,
                examples[i : i + rows],
                stage.decision_weight,
                hidden_from=_hidden_from(rng, stage),
            )
            for i in range(0, size, rows)
        ]


def _hidden_from(rng: np.random.Generator, stage: Stage) -> str:
    if rng.random() >= HIDDEN_SHARE:
        return ""
    both = stage.lone_marks and rng.random() < stage.lone_marks
    return "predictable words and sizes" if both else "predictable words"


def _length(example: Example) -> int:
    return len(text_of(example.parts)) + 4 * len(example.kept)


def collate(
    processor: Any,
    examples: list[Example],
    decision_weight: float = 1.0,
    *,
    hidden_from: str = "",
) -> dict[str, Any]:
    """Turn examples into one right-padded batch.

    Parameters
    ----------
    processor, examples
        The testbed's processor, and the rows.
    decision_weight
        Weight of ``DECISIONS``; see ``Stage``.
    hidden_from
        The steps of a verification that see no visual token: those of its ``predictable words``
        (which the text before determines), of its ``predictable words and sizes`` (sizes then have
        weight 0), or none (``""``).

    Returns
    -------
    dict
        ``input_ids`` and ``labels`` (``IGNORED`` outside answers) [batch, length]; ``must_look``
        (bool) and ``weights`` (float32), aligned with them; ``hidden`` (bool) [batch, length]: the
        tokens that see no visual token; ``position_ids`` [3, batch, length]; the output of the
        image processor; ``visual_index`` [image tokens of the batch]: which of the batch's visual
        tokens, as the vision tower gives them, is at each image token.
    """
    images = [example.scene.draw() for example in examples]
    vision = processor.image_processor(images, do_resize=False, return_tensors="pt")
    counts = [example.scene.rows * example.scene.columns for example in examples]
    firsts = [0, *accumulate(counts)]
    rows = [
        _encode(processor, example, first) for example, first in zip(examples, firsts, strict=False)
    ]
    shape = (len(rows), max(len(tokens) for tokens, _, _ in rows))
    ids = torch.full(shape, processor.tokenizer.pad_token_id)
    labels = torch.full(shape, IGNORED)
    must_look = torch.zeros(shape, dtype=torch.bool)
    hidden, unlearned = torch.zeros((2, *shape), dtype=torch.bool)
    positions = torch.zeros((3, *shape), dtype=torch.long)
    for i, (tokens, row_positions, _) in enumerate(rows):
        n = len(tokens)
        columns = (torch.tensor(column) for column in zip(*tokens, strict=True))
        ids[i, :n], labels[i, :n], must_look[i, :n], predictable, sizes = columns
        if hidden_from:
            hidden[i, : n - 1] = predictable[1:]
        if hidden_from == "predictable words and sizes":
            hidden[i, : n - 1] |= sizes[1:]
            unlearned[i, :n] = sizes
        positions[:, i, :n] = torch.from_numpy(row_positions)
    weights = torch.ones(shape)
    decisions = [t for t in processor.tokenizer.get_vocab() if t.lstrip("\u0120") in DECISIONS]
    decision_ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(sorted(decisions)))
    weights[torch.isin(labels, decision_ids)] = decision_weight
    weights[unlearned] = 0.0
    return {
        "input_ids": ids,
        "labels": labels,
        "weights": weights,
        "must_look": must_look,
        "hidden": hidden,
        "position_ids": positions,
        **vision,
        "visual_index": torch.tensor([v for *_, visual_index in rows for v in visual_index]),
    }


class _Token(NamedTuple):
    id: int
    label: int = IGNORED
    must_look: bool = False
    predictable: bool = False
    """Inside a verification, like the token before it, and determined by the text before."""
    size: bool = False
    """States a size inside a verification."""


def _encode(
    processor: Any, example: Example, first: int
) -> tuple[list[_Token], np.ndarray, list[int]]:
    """Return the tokens of prompt and answer with the insertions, their positions, visual indices.

    ``first`` is the index of the image's first visual token.
    """
    tokenizer, image = processor.tokenizer, processor.image_token
    grid = (example.scene.rows, example.scene.columns)
    count = grid[0] * grid[1]
    prompt = tokenizer.apply_chat_template(
        single_turn(example.text, images=1), tokenize=False, add_generation_prompt=True
    )
    prompt = prompt.replace(image, image * count)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    before_image = prompt_ids.index(processor.image_token_id)
    pieces: list[int | ImagePiece] = [before_image, ImagePiece(*grid)]
    text_tokens = len(prompt_ids) - before_image - count
    tokens = [_Token(token) for token in prompt_ids]
    visual_index = list(range(first, first + count))

    answer = text_of(example.parts)
    coded = tokenizer(
        answer + tokenizer.eos_token, add_special_tokens=False, return_offsets_mapping=True
    )
    must_look, verifies = np.zeros((2, len(answer) + 16), dtype=bool)
    insertions, start = set(), 0
    for part in example.parts:
        must_look[start : start + len(part.text)] = part.must_look
        verifies[start : start + len(part.text)] = part.section == "verification"
        if example.kept and part.text in VERIFICATION_TAGS:
            insertions.add(start)
        start += len(part.text)
    vision_start, vision_end = tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>"]
    )
    inserted = [vision_start, *[processor.image_token_id] * len(example.kept), vision_end]
    for answer_token, (a, b) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        if a in insertions:
            tokens += [_Token(token) for token in inserted]
            pieces += [text_tokens + 1, ImagePiece(*grid, example.kept)]
            text_tokens = 1
            visual_index += [first + j for j in example.kept]
        looks = bool(must_look[a:b].any())
        verified = a > 0 and bool(verifies[a - 1] and verifies[a])
        size = verified and looks and answer[a:b].strip() in SIZES
        tokens.append(_Token(answer_token, answer_token, looks, verified and not looks, size))
        text_tokens += 1
    return tokens, multimodal_positions([*pieces, text_tokens]), visual_index
