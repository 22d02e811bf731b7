"""A sample: a scene, a question, a mode, and the true answer with the truth of its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.files import write_folder
from attnlens.testbed.world.answers import Part, text_of, write_answer
from attnlens.testbed.world.questions import (
    KINDS,
    MAX_COUNTS,
    MAX_STEPS,
    Question,
    draw_question,
)
from attnlens.testbed.world.scenes import Scene, pick, random_scene

if TYPE_CHECKING:
    from PIL import Image

HELD_OUT = 10**9
"""Training uses only seeds below this one."""

IMAGES = ("true", "blank", "other")
"""Pictures that can be shown for a sample; see ``picture``."""


@dataclass(frozen=True)
class Sample:
    """One scene with a question and its true answer.

    Attributes
    ----------
    scene, question, mode
        What is asked about which picture, and in which format.
    parts
        The true answer in parts; see ``Part``.
    """

    scene: Scene
    question: Question
    mode: str
    parts: tuple[Part, ...]

    @property
    def answer(self) -> str:
        """The whole true answer."""
        return text_of(list(self.parts))

    def truth(self, tokens: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the truth as plain values: objects with boxes and visual tokens, and parts.

        Parameters
        ----------
        tokens
            Texts of the answer's tokens. With them, ``tokens`` holds the truth of each.
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


@dataclass(frozen=True)
class TokenTruth:
    """The truth of one token of an answer.

    Attributes
    ----------
    text
        The token's text.
    speaks_of
        Index (in reading order) of the object that the token is about, or None.
    must_look
        True if neither the question nor the text before determines the token.
    section
        ``description``, ``reasoning``, ``verification``, ``conclusion`` or ``summary``.
    visual_tokens
        The visual tokens that show the object, in reading order; empty if there is none.
    box
        Pixel box (left, top, right, bottom) of the object, or None.
    """

    text: str
    speaks_of: int | None
    must_look: bool
    section: str
    visual_tokens: tuple[int, ...]
    box: tuple[float, float, float, float] | None

    @property
    def states_fact(self) -> bool:
        """Whether the token states a size or a mark inside a verification."""
        return self.must_look and self.section == "verification"


def token_truth(sample: Sample, tokens: Sequence[str]) -> list[TokenTruth]:
    """Spread the truth of a sample's parts over the tokens of its answer.

    Parameters
    ----------
    sample
        The sample.
    tokens
        Texts of the answer's tokens, in order. Those after the answer (an end token) are ignored.

    Returns
    -------
    list of TokenTruth
        One per token of the answer. A token that spans several parts must look if one of them
        must, and is about the first object that one of them is about.

    Raises
    ------
    InputError
        If the tokens do not spell the true answer.
    """
    answer = sample.answer
    ends = list(accumulate(len(text) for text in tokens))
    spelled = "".join(tokens)
    if not spelled.startswith(answer) or len(answer) not in ends:
        at = next((i for i, (a, b) in enumerate(zip(spelled, answer, strict=False)) if a != b), 0)
        raise InputError(
            f"the tokens do not spell the true answer: found {spelled[at : at + 40]!r} where "
            f"{answer[at : at + 40]!r} was expected (character {at})"
        )
    part_at = [part for part in sample.parts for _ in part.text]
    result = []
    for start, stop in zip([0, *ends], ends, strict=False):
        if start >= len(answer):
            break
        if start == stop:  # bytes of a character that a later token completes
            continue
        parts = part_at[start:stop]
        index = next((p.speaks_of for p in parts if p.speaks_of is not None), None)
        o = None if index is None else sample.scene.objects[index]
        result.append(
            TokenTruth(
                text=answer[start:stop],
                speaks_of=index,
                must_look=any(p.must_look for p in parts),
                section=parts[0].section,
                visual_tokens=() if o is None else (sample.scene.visual_token(o),),
                box=None if o is None else o.box,
            )
        )
    return result


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
    """Draw a random scene, ask a question about it, and write the true answer.

    Parameters
    ----------
    rng
        Source of randomness.
    mode
        ``normal``, ``cot``, ``back`` or ``reflection``.
    kind
        Kind of question, a key of ``KINDS``; random by default, ``chain`` if ``steps`` is given.
    objects, grid
        See ``random_scene``.
    steps
        Number of steps of a ``chain`` question, 1 to ``MAX_STEPS``; by default 2 or 3.
    looks
        Number of verifications in a ``back`` answer, 1 or 2; by default 2 in one of four.
    counts
        How often the reasoning counts the objects, 1 to ``MAX_COUNTS``; by default once in four of
        five.

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
    """Draw a sample that training never saw, the same one for the same arguments.

    Raises
    ------
    InputError
        If the seed is out of range, or as in ``make_sample``.
    """
    if not 0 <= seed < 2**32 - HELD_OUT:  # NumPy would read a larger one as two numbers
        raise InputError(f"seed {seed} of held-out scenes: give 0 to {2**32 - HELD_OUT - 1}")
    rng = np.random.default_rng((HELD_OUT + seed, index))
    return make_sample(rng, mode, **options)


def picture(sample: Sample, image: str = "true") -> Image.Image:
    """Draw a picture to show for a sample.

    Parameters
    ----------
    sample
        The sample.
    image
        ``true``: its scene. ``blank``: an empty picture of the same size. ``other``: another scene
        with the same grid and number of objects, always the same one for a sample.

    Raises
    ------
    InputError
        If ``image`` is none of these.
    """
    from PIL import Image

    scene = sample.scene
    if image not in IMAGES:
        raise InputError(f"unknown picture {image!r}: use one of {', '.join(IMAGES)}")
    if image == "blank":
        return Image.new("RGB", scene.size, scene.background)
    if image == "other":
        first = scene.objects[0].centre[0] if scene.objects else 0
        rng = np.random.default_rng((HELD_OUT, len(scene.objects), int(first * 1e6)))
        grid = (scene.rows, scene.columns)
        return random_scene(rng, objects=len(scene.objects), grid=grid).draw()
    return scene.draw()


def save_samples(samples: list[Sample], folder: Path, tokenizer: Any = None) -> None:
    """Write samples as ``0000.png`` and ``0000.json`` into a new folder, all or none.

    The folder also gets ``questions.jsonl``, one line per sample, in the format of the command
    line's ``--data``.

    Parameters
    ----------
    samples
        The samples.
    folder
        Must not exist, or be empty.
    tokenizer
        A Hugging Face tokenizer. With it, the JSON holds the truth of every token of the answer.
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
