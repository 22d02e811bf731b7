"""A sample: a scene, a question, a mode, the true answer and where its truth lies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.files import write_folder
from attnlens.testbed.answers import Part, text_of, write_answer
from attnlens.testbed.draws import pick
from attnlens.testbed.questions import KINDS, MAX_COUNTS, MAX_STEPS, Question, draw_question
from attnlens.testbed.scenes import Scene, random_scene
from attnlens.testbed.truth import token_truth

HELD_OUT = 10**9
"""Seeds from here on are never used in training."""


@dataclass(frozen=True)
class Sample:
    """One scene with a question and its true answer.

    Attributes
    ----------
    scene, question, mode
        What is asked of which picture, and in which format.
    parts
        The true answer in parts, each with the object that it speaks of and whether the text
        before it determines it.
    """

    scene: Scene
    question: Question
    mode: str
    parts: tuple[Part, ...]

    @property
    def answer(self) -> str:
        """The true answer in full."""
        return text_of(list(self.parts))

    def truth(self, tokens: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the truth as plain values: objects with boxes and visual tokens, and parts.

        Parameters
        ----------
        tokens
            Texts of the answer's tokens; with them, ``tokens`` gives the truth of each.
        """
        start, spans = 0, []
        for part in self.parts:
            spans.append({"start": start, "stop": start + len(part.text), **asdict(part)})
            start += len(part.text)
        objects = [
            {**asdict(o), "box": list(o.box), "visual_token": self.scene.visual_token(o)}
            for o in self.scene.objects
        ]
        truth = {
            "mode": self.mode,
            "kind": self.question.kind,
            "looks": self.question.looks,
            "counts": self.question.counts,
            "question": self.question.text,
            "expected": self.question.answer,
            "answer": self.answer,
            "rows": self.scene.rows,
            "columns": self.scene.columns,
            "objects": objects,
            "parts": spans,
        }
        if tokens is not None:
            truth["tokens"] = [asdict(token) for token in token_truth(self, tokens)]
        return truth


def make_sample(
    rng: np.random.Generator,
    mode: str,
    *,
    kind: str | None = None,
    objects: int | None = None,
    grid: tuple[int, int] | str | None = None,
    steps: int | None = None,
    looks: int | None = None,
    counts: int | None = None,
) -> Sample:
    """Draw a scene, ask a question about it, and write the true answer.

    Parameters
    ----------
    rng
        Source of randomness.
    mode
        ``normal``, ``cot``, ``back`` or ``reflection``.
    kind
        Kind of question, a key of ``KINDS``; when not given, drawn (``chain`` if ``steps`` is).
    objects, grid
        See ``random_scene``.
    steps
        Number of steps of a ``chain`` question, 1 to ``MAX_STEPS``; 2 or 3 when not given.
    looks
        Number of verifications of a ``back`` answer, 1 or 2; when not given, 2 in one of four.
    counts
        How many times the reasoning counts the objects, 1 to ``MAX_COUNTS``; when not given, once
        in four of five.

    Raises
    ------
    InputError
        If mode or kind is unknown, or a number out of range.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"unknown kind of question {kind!r}: use one of {', '.join(KINDS)}")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise InputError(f"a chain of {steps!r} steps: give 1 to {MAX_STEPS}")
    if steps is not None and kind not in (None, "chain"):
        raise InputError(f"{steps} steps of a {kind!r} question: only 'chain' questions have steps")
    if looks not in (None, 1, 2):
        raise InputError(f"{looks!r} verifications: give 1 or 2")
    if counts is not None and not 1 <= counts <= MAX_COUNTS:
        raise InputError(f"{counts!r} counts of the objects: give 1 to {MAX_COUNTS}")
    scene = random_scene(rng, objects=objects, grid=grid)
    if kind is None:
        kind = pick(rng, tuple(KINDS)) if steps is None else "chain"
    question = draw_question(scene, rng, kind, steps)
    twice = rng.random() < 0.25 if looks is None else looks == 2
    if mode == "back" and twice:
        question = question.look_twice()
    if counts is None:
        counts = int(rng.integers(2, MAX_COUNTS + 1)) if rng.random() < 0.2 else 1
    if counts > 1 and mode != "normal":
        question = question.count_times(counts)
    parts = write_answer(scene, question, mode)
    return Sample(scene=scene, question=question, mode=mode, parts=tuple(parts))


def held_out_sample(seed: int, index: int, mode: str, **options: Any) -> Sample:
    """Draw a sample that training never saw; a function of its arguments alone.

    Raises
    ------
    InputError
        If the seed is out of range, or as in ``make_sample``.
    """
    if not 0 <= seed < 2**32 - HELD_OUT:  # beyond, NumPy would read it as two numbers
        raise InputError(f"seed {seed} of held-out scenes: give 0 to {2**32 - HELD_OUT - 1}")
    rng = np.random.default_rng((HELD_OUT + seed, index))
    return make_sample(rng, mode, **options)


def save_samples(samples: list[Sample], folder: Path, tokenizer: Any = None) -> None:
    """Write samples as ``0000.png`` and ``0000.json`` into a new folder, all or none.

    Beside them stands ``questions.jsonl``, a line each, as ``--data`` of the command line takes it.

    Parameters
    ----------
    samples
        What to write.
    folder
        Where to; must not exist or be empty.
    tokenizer
        A Hugging Face tokenizer; with it, the JSON holds the truth of every token of the answer.
    """
    from attnlens.recording.response import token_texts

    with write_folder(folder) as temporary:
        for index, sample in enumerate(samples):
            sample.scene.draw().save(temporary / f"{index:04d}.png")
            tokens = None
            if tokenizer is not None:
                ids = tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
                tokens = token_texts(tokenizer, ids)
            text = json.dumps(sample.truth(tokens), indent=1)
            (temporary / f"{index:04d}.json").write_text(text + "\n", encoding="utf-8")
        lines = [
            {"image": f"{i:04d}.png", "question": s.question.text, "answer": s.question.answer}
            for i, s in enumerate(samples)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (temporary / "questions.jsonl").write_text(text, encoding="utf-8")
