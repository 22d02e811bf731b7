"""Training batches: samples turned into tensors, each batch a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attnlens.models.chat import messages
from attnlens.models.family import ImagePiece
from attnlens.models.modes import user_text
from attnlens.models.qwen2_5_vl import multimodal_positions
from attnlens.testbed.answers import VERIFICATION_TAGS, Part, text_of
from attnlens.testbed.draws import pick_by_share
from attnlens.testbed.perception import (
    KIND_SHARES,
    few_or_many,
    perception_example,
)
from attnlens.testbed.questions import MAX_STEPS
from attnlens.testbed.samples import HELD_OUT, make_sample
from attnlens.testbed.scenes import GRID_SHARES, SIZES, Scene

IGNORED = -100
"""Label of positions that carry no loss."""

DECISIONS = ("yes", "no", "more", "fewer", "present", "absent")
"""Words on which an answer hangs that are one of two, and so weigh little in a loss by tokens."""

PERCEPTION_BATCH = {"small": 48, "medium": 32, "large": 16}
ANSWER_BATCH = {"small": 24, "medium": 20, "large": 14}
LONG_BATCH = 6
"""Examples of a batch, by size class, so that batches cost about the same."""

PIECE, LONG_PIECE = 8, 2
"""Rows that go through the model together; a batch is sorted by length and cut, to pad less."""

PERCEPTION_GRID_SHARES = {"small": 0.8, "medium": 0.15, "large": 0.05}
MODE_SHARES = {"back": 0.4, "cot": 0.25, "reflection": 0.35}
INSERTION_SHARES = {
    "back": {"none": 0.8, "all": 0.1, "part": 0.1},
    "reflection": {"none": 0.25, "all": 0.45, "part": 0.3},
}
"""How often visual tokens are inserted before a verification's tag in training."""

HIDDEN_SHARE = 0.4
"""In how many pieces the told words of a verification are written without a view of the image.

A fact can be taken up from the image at the step that states it or at the name before it, and
without such pieces a model may learn either: one did. Where the name sees no image, the step itself
is nearest.
"""


@dataclass(frozen=True)
class Example:
    """What one row of a batch is made of.

    Attributes
    ----------
    scene, text, parts
        The picture, the user's text, the answer.
    kept
        Which visual tokens are inserted before each of ``VERIFICATION_TAGS``, in reading order;
        none, and nothing is inserted, when empty.
    """

    scene: Scene
    text: str
    parts: list[Part]
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What training asks for from a step on.

    Attributes
    ----------
    first
        The step.
    kinds
        How often each kind of question is asked, in the order of ``KIND_SHARES``.
    long_every
        Every such step has long chained questions.
    decision_weight
        Weight of the tokens of ``DECISIONS`` in the loss (and in the loss that is logged); that of
        all others is 1.
    lone_marks
        In how many of the pieces that hide the image from told words (``HIDDEN_SHARE``) it is
        hidden from the steps of sizes, too, which are then not learned. A mark comes right after
        the size, and the size's step can take up both; there, only the mark's own step can.
    """

    first: int
    kinds: tuple[float, ...]
    long_every: int = 12
    decision_weight: float = 1.0
    lone_marks: float = 0.0


STAGES = (
    Stage(0, tuple(KIND_SHARES.values()), long_every=10, decision_weight=3.0),
    Stage(3000, (0.1, 0.2, 0.32, 0.18, 0.2), long_every=10, decision_weight=3.0),
    Stage(4800, (0.1, 0.2, 0.32, 0.18, 0.2), 10, decision_weight=3.0, lone_marks=0.75),
)
"""The stages of the shipped weights: chains take the longest to learn, and come often early on."""

Kinds = Mapping[str, float]
"""How often each kind of question is asked."""


def _perception(rng: np.random.Generator, grid: str, kinds: Kinds) -> Example:
    return Example(*perception_example(rng, grid, kinds))


def _answer(rng: np.random.Generator, grid: str, kinds: Kinds) -> Example:
    if rng.random() < 0.25:
        return _perception(rng, grid, kinds)
    mode, kind = pick_by_share(rng, MODE_SHARES), pick_by_share(rng, kinds)
    steps = int(rng.integers(2, 9)) if kind == "chain" else None
    objects = few_or_many(rng) if rng.random() < 0.15 else None
    sample = make_sample(rng, mode, kind=kind, objects=objects, grid=grid, steps=steps)
    return _with_insertion(rng, sample)


def _long(rng: np.random.Generator, grid: str, kinds: Kinds) -> Example:
    mode = pick_by_share(rng, MODE_SHARES)
    steps = int(9 * (MAX_STEPS / 9) ** rng.random())  # each doubling alike
    sample = make_sample(rng, mode, grid=grid, kind="chain", steps=steps, counts=1)
    return _with_insertion(rng, sample)


def _with_insertion(rng: np.random.Generator, sample: Any) -> Example:
    text = user_text(sample.question.text, sample.mode)
    parts = list(sample.parts)
    what = pick_by_share(rng, INSERTION_SHARES.get(sample.mode, {"none": 1.0}))
    if what == "none":
        return Example(sample.scene, text, parts)
    count = sample.scene.rows * sample.scene.columns
    kept = np.arange(count)
    if what == "part":
        kept = np.sort(rng.permutation(count)[: int(rng.integers(1, count))])
    return Example(sample.scene, text, parts, tuple(kept.tolist()))


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
    stages
        What the steps ask for, in order; see ``Stage``.
    first
        Number of the first step to deliver (when a run is taken up again).
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
        """Count the steps that are left."""
        return self.steps - self.first

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        """Build the batch of step ``first + index``, in pieces of rows of about one length."""
        step = self.first + index
        rng = np.random.default_rng((self.seed, step))
        stage = [stage for stage in self.stages if stage.first <= step][-1]
        kinds = dict(zip(KIND_SHARES, stage.kinds, strict=True))
        if step < self.perception_steps:
            grid = pick_by_share(rng, PERCEPTION_GRID_SHARES)
            make, size = _perception, PERCEPTION_BATCH[grid]
        elif (step + 1) % stage.long_every == 0:
            grid = pick_by_share(rng, GRID_SHARES)
            make, size = _long, LONG_BATCH
        else:
            grid = pick_by_share(rng, GRID_SHARES)
            make, size = _answer, ANSWER_BATCH[grid]
        # rows from 1: to NumPy, (seed, step, 0) is the batch's own (seed, step)
        seeds = [(self.seed, step, row) for row in range(1, size + 1)]
        examples = [make(np.random.default_rng(s), grid, kinds) for s in seeds]
        examples.sort(key=_length)
        rows = LONG_PIECE if make is _long else PIECE
        return [
            collate(
                self.processor,
                examples[i : i + rows],
                stage.decision_weight,
                hide=_what_is_hidden(rng, stage),
            )
            for i in range(0, size, rows)
        ]


def _what_is_hidden(rng: np.random.Generator, stage: Stage) -> str:
    if rng.random() >= HIDDEN_SHARE:
        return ""
    both = stage.lone_marks and rng.random() < stage.lone_marks
    return "told words and sizes" if both else "told words"


def _length(example: Example) -> int:
    return len(text_of(example.parts)) + 4 * len(example.kept)


def collate(
    processor: Any,
    examples: list[Example],
    decision_weight: float = 1.0,
    *,
    hide: str = "",
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
    hide
        From which steps of a verification visual tokens are hidden: those of ``told words``, of
        ``told words and sizes`` (with weight 0 for the sizes), or none (``""``).

    Returns
    -------
    dict
        ``input_ids`` and ``labels`` (``IGNORED`` outside answers) [batch, length]; ``must_look``
        (bool) and ``weights`` (float32), aligned with them; ``hidden`` (bool) [batch, length]: the
        tokens that see no visual token; ``position_ids`` [3, batch, length];
        what the image processor gives; ``visual_index`` [image tokens of the batch]: which visual
        token, of all that the vision tower gives for this batch, stands at each image token.
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
        if hide:
            hidden[i, : n - 1] = torch.tensor(row.told[1:])
        if hide == "told words and sizes":
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
    ids: list[int]
    labels: list[int]
    must_look: list[bool]
    told: list[bool]
    """Whether this token and the one before it are a verification's, and this one is told."""
    sizes: list[bool]
    """Whether this token states a size inside a verification."""
    positions: np.ndarray
    visual_index: list[int]


def _encode(processor: Any, example: Example, first: int) -> _Row:
    """Encode prompt and answer, with the insertions; ``first`` is the image's visual token 0."""
    tokenizer, image = processor.tokenizer, processor.image_token
    grid = (example.scene.rows, example.scene.columns)
    count = grid[0] * grid[1]
    prompt = tokenizer.apply_chat_template(
        messages(example.text, images=1), tokenize=False, add_generation_prompt=True
    )
    prompt_ids = tokenizer(prompt.replace(image, image * count), add_special_tokens=False)
    row_ids: list[int] = list(prompt_ids["input_ids"])
    before_image = row_ids.index(processor.image_token_id)
    labels, looks = [IGNORED] * len(row_ids), [False] * len(row_ids)
    told, sizes = [False] * len(row_ids), [False] * len(row_ids)
    pieces: list[int | ImagePiece] = [before_image, ImagePiece(*grid)]
    text_tokens = len(row_ids) - before_image - count
    visual = list(range(first, first + count))

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
    for token, (a, b) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        if a in insertions:
            k = len(example.kept)
            row_ids += [vision_start, *[processor.image_token_id] * k, vision_end]
            labels += [IGNORED] * (k + 2)
            looks += [False] * (k + 2)
            told += [False] * (k + 2)
            sizes += [False] * (k + 2)
            pieces += [text_tokens + 1, ImagePiece(*grid, example.kept)]
            text_tokens = 1
            visual += [first + j for j in example.kept]
        row_ids.append(token)
        labels.append(token)
        looks.append(bool(must_look[a:b].any()))
        verified = a > 0 and bool(verifies[a - 1] and verifies[a])
        told.append(verified and not looks[-1])
        sizes.append(verified and looks[-1] and answer[a:b].strip() in SIZES)
        text_tokens += 1
    positions = multimodal_positions([*pieces, text_tokens])
    return _Row(row_ids, labels, looks, told, sizes, positions, visual)
