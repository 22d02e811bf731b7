"""Training batches: examples as tensors. A batch depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attnlens.models.chat import messages
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
        How many steps at the beginning have short perception questions only.
    stages
        See ``Stage``.
    first
        The step to start from, when a run is resumed.
    """

    def __init__(
        self,
        processor: Any,
        seed: int,
        steps: int,
        perception_steps: int,
        stages: Sequence[Stage] = (STAGES[0],),
        first: int = 0,
    ) -> None:
        assert 0 <= seed < HELD_OUT
        self.processor = processor
        self.seed = seed
        self.steps = steps
        self.perception_steps = perception_steps
        self.stages = tuple(stages)
        self.first = first

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
    processor
        The testbed's processor.
    examples
        The rows.
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
    rows, first = [], 0
    for example in examples:
        rows.append(_encode(processor, example, first))
        first += example.scene.rows * example.scene.columns
    length = max(len(row.ids) for row in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, processor.tokenizer.pad_token_id)
    labels = torch.full(shape, IGNORED)
    must_look = torch.zeros(shape, dtype=torch.bool)
    hidden, unlearned = torch.zeros((2, *shape), dtype=torch.bool)
    positions = torch.zeros((3, *shape), dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        labels[i, :n] = torch.tensor(row.labels)
        must_look[i, :n] = torch.tensor(row.must_look)
        if hidden_from:
            hidden[i, : n - 1] = torch.tensor(row.predictable[1:])
        if hidden_from == "predictable words and sizes":
            hidden[i, : n - 1] |= torch.tensor(row.sizes[1:])
            unlearned[i, :n] = torch.tensor(row.sizes)
        positions[:, i, :n] = torch.from_numpy(row.positions)
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
        "visual_index": torch.tensor([v for row in rows for v in row.visual_index]),
    }


@dataclass
class _Row:
    visual_index: list[int]
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    must_look: list[bool] = field(default_factory=list)
    predictable: list[bool] = field(default_factory=list)
    """Inside a verification, like the token before it, and determined by the text before."""
    sizes: list[bool] = field(default_factory=list)
    """States a size inside a verification."""
    positions: np.ndarray = field(init=False)

    def add(
        self,
        token: int,
        label: int = IGNORED,
        *,
        must_look: bool = False,
        predictable: bool = False,
        size: bool = False,
    ) -> None:
        self.ids.append(token)
        self.labels.append(label)
        self.must_look.append(must_look)
        self.predictable.append(predictable)
        self.sizes.append(size)


def _encode(processor: Any, example: Example, first: int) -> _Row:
    """Encode prompt and answer with the insertions; ``first`` is the image's first visual token."""
    tokenizer, image = processor.tokenizer, processor.image_token
    grid = (example.scene.rows, example.scene.columns)
    count = grid[0] * grid[1]
    prompt = tokenizer.apply_chat_template(
        messages(example.text, images=1), tokenize=False, add_generation_prompt=True
    )
    prompt_ids = tokenizer(prompt.replace(image, image * count), add_special_tokens=False)
    row = _Row(visual_index=list(range(first, first + count)))
    for token in prompt_ids["input_ids"]:
        row.add(token)
    before_image = row.ids.index(processor.image_token_id)
    pieces: list[int | ImagePiece] = [before_image, ImagePiece(*grid)]
    text_tokens = len(row.ids) - before_image - count

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
    for token, (a, b) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        if a in insertions:
            for inserted_token in inserted:
                row.add(inserted_token)
            pieces += [text_tokens + 1, ImagePiece(*grid, example.kept)]
            text_tokens = 1
            row.visual_index += [first + j for j in example.kept]
        looks = bool(must_look[a:b].any())
        verified = a > 0 and bool(verifies[a - 1] and verifies[a])
        row.add(
            token,
            token,
            must_look=looks,
            predictable=verified and not looks,
            size=verified and looks and answer[a:b].strip() in SIZES,
        )
        text_tokens += 1
    row.positions = multimodal_positions([*pieces, text_tokens])
    return row
