"""Score a model on held-out scenes, where the truth is known."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.boxed import boxed_answer
from attnlens.progress import progress
from attnlens.testbed.respond import respond
from attnlens.testbed.samples import Sample, held_out_sample
from attnlens.testbed.scenes import COLOURS, MARKS, SHAPES, SIZES

if TYPE_CHECKING:
    from attnlens.vlm.load import VLM

MODES = ("normal", "cot", "back", "reflection")
CHANCE = {"size": 1 / len(SIZES), "mark": 1 / len(MARKS)}
"""Chance of naming a size or a mark at random; scenes draw them evenly."""

_NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_FACT = re.compile(rf"({_NAME}):(?: ({'|'.join(SIZES)}))?(?: ({'|'.join(MARKS)}))?")
_SEEN = re.compile(rf"#\d+ ({_NAME})")
_BOX = r"\\boxed\{[^{}]+\}"
_VERIFICATION = re.compile(r"<(back|REFLECTION)>(.*?)(?:</\1>|$)", re.DOTALL)


def _section(tag: str) -> str:
    return rf"<{tag}>(?:(?!</?{tag}>).)+</{tag}>\s*"


_THINK, _BACK = _section("think"), _section("back")


def _format(mode: str, looks: int) -> re.Pattern[str]:
    """Pattern of a whole response."""
    if mode == "normal":
        return re.compile(_BOX)
    if mode == "reflection":
        first = "".join(map(_section, ("SUMMARY", "CAPTION", "REASONING", "REFLECTION")))
        conclusion = rf"<CONCLUSION>(?:(?!</?CONCLUSION>).)*{_BOX}\s*</CONCLUSION>"
        return re.compile(first + conclusion, re.DOTALL)
    verified = f"(?:{_BACK}{_THINK}){{{looks}}}" if mode == "back" else ""
    return re.compile(_THINK + verified + _BOX, re.DOTALL)


@dataclass(frozen=True)
class Marks:
    """How one response did.

    Attributes
    ----------
    answer, format
        Whether the boxed answer is the true one, and the format that of the mode.
    described
        Objects named in the first description that are there and named once, of those that are
        named or there; (right, all).
    size, mark
        Sizes and marks stated inside ``<back>`` or ``<REFLECTION>`` that are true, of those stated
        or due; (right, all).
    """

    answer: bool
    format: bool
    described: tuple[int, int]
    size: tuple[int, int]
    mark: tuple[int, int]


def mark_response(sample: Sample, text: str) -> Marks:
    """Compare a response with the truth.

    Parameters
    ----------
    sample
        What was asked.
    text
        What the model wrote.
    """
    objects = sample.scene.by_name
    stated = [f for _, part in _VERIFICATION.findall(text) for f in _FACT.findall(part)]
    sizes = [(name, size) for name, size, _ in stated if size]
    marks = [(name, mark) for name, _, mark in stated if mark]
    verifies = sample.mode in ("back", "reflection")
    seen = _SEEN.findall(text.split(" Total ")[0])
    due = len(objects) if verifies else 0
    describes = sample.mode != "normal"
    return Marks(
        answer=boxed_answer(text) == sample.question.answer,
        format=bool(_format(sample.mode, sample.question.looks).fullmatch(text.strip())),
        described=(
            len(set(seen) & set(objects)) if describes else 0,
            max(len(seen), len(objects)) if describes else 0,
        ),
        size=(
            len({n for n, value in sizes if n in objects and objects[n].size == value}),
            max(len(sizes), due),
        ),
        mark=(
            len({n for n, value in marks if n in objects and objects[n].mark == value}),
            max(len(marks), due),
        ),
    )


def score(
    vlm: VLM,
    scenes: int,
    seed: int = 0,
    *,
    modes: tuple[str, ...] = MODES,
    kind: str | None = None,
    steps: int | None = None,
    batch_size: int = 50,
    image: str = "true",
    copy: bool = True,
) -> dict[str, Any]:
    """Let a model answer held-out questions greedily and count what is right.

    Parameters
    ----------
    vlm
        The model.
    scenes
        Number of scenes per mode.
    seed
        Which held-out scenes.
    modes
        The modes to score.
    kind, steps
        Kind of question, and steps of a ``chain``; see ``make_sample``.
    batch_size
        How many questions are generated together. A response is cut 50 tokens after the length of
        the longest true answer among them.
    image
        ``true``; ``blank``: an empty picture of the same size; ``other``: the picture of another
        scene of the same grid. What is right without the true picture was not seen.
    copy
        Whether all visual tokens are inserted again before ``<REFLECTION>`` in mode
        ``reflection`` (Visual Token COPY of Qwen-LookAgain, arXiv 2505.23558).

    Returns
    -------
    dict
        By mode: ``answer``, ``format``, ``described``, ``verified`` as fractions (None where
        nothing was due), ``verified_by`` (size and mark), ``steps`` (mean length of responses),
        ``by_kind`` (``answer`` by kind of question), and ``chance``: the fraction right of always
        giving the commonest answer of each kind, and of naming sizes and marks at random.
    """
    return {
        mode: _score_mode(
            vlm,
            [held_out_sample(seed, i, mode, kind=kind, steps=steps) for i in range(scenes)],
            batch_size=batch_size,
            image=image,
            copy=copy and mode == "reflection",
        )
        for mode in modes
    }


def _score_mode(
    vlm: VLM, samples: list[Sample], *, batch_size: int, **options: Any
) -> dict[str, Any]:
    mode, scenes = samples[0].mode, len(samples)
    responses: list[tuple[str, int]] = []
    for start in progress(range(0, scenes, batch_size), description=f"scoring {mode}"):
        here = samples[start : start + batch_size]
        encoded = vlm.tokenizer([s.answer for s in here], add_special_tokens=False)["input_ids"]
        longest = max(map(len, encoded)) + 50
        responses += respond(vlm, here, max_new_tokens=longest, **options)
    marks = [mark_response(s, text) for s, (text, _) in zip(samples, responses, strict=True)]
    answers: dict[str, list[bool]] = defaultdict(list)
    expected: dict[str, list[str]] = defaultdict(list)
    for sample, mark in zip(samples, marks, strict=True):
        answers[sample.question.kind].append(mark.answer)
        expected[sample.question.kind].append(sample.question.answer)
    commonest = sum(max(map(values.count, values)) for values in expected.values())
    by = {name: [getattr(m, name) for m in marks] for name in ("described", "size", "mark")}
    sums = {name: (sum(r for r, _ in v), sum(n for _, n in v)) for name, v in by.items()}
    verified = (sums["size"][0] + sums["mark"][0], sums["size"][1] + sums["mark"][1])
    return {
        "scenes": scenes,
        "answer": _fraction(sum(m.answer for m in marks), scenes),
        "format": _fraction(sum(m.format for m in marks), scenes),
        "described": _fraction(*sums["described"]),
        "verified": _fraction(*verified),
        "verified_by": {name: _fraction(*sums[name]) for name in ("size", "mark")},
        "steps": float(np.mean([steps for _, steps in responses])),
        "by_kind": {kind: _fraction(sum(v), len(v)) for kind, v in sorted(answers.items())},
        "chance": {
            "answer": _fraction(commonest, scenes),
            "verified": float(np.mean(list(CHANCE.values()))),
            "verified_by": CHANCE,
        },
    }


def _fraction(right: int, total: int) -> float | None:
    return right / total if total else None
