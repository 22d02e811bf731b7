"""Score a model on held-out scenes, where the truth is known."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.answers import boxed_answer, is_right
from attnlens.errors import InputError
from attnlens.models.modes import MODES
from attnlens.progress import progress
from attnlens.testbed.respond import respond
from attnlens.testbed.samples import Sample, held_out_sample
from attnlens.testbed.scenes import COLOURS, MARKS, SHAPES, SIZES

if TYPE_CHECKING:
    from attnlens.models.load import VLM

CHANCE = {"size": 1 / len(SIZES), "mark": 1 / len(MARKS)}
"""Chance of naming a size or a mark at random; scenes draw them evenly."""

_NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_FACT = re.compile(rf"({_NAME}):(?: ({'|'.join(SIZES)}))?(?: ({'|'.join(MARKS)}))?(?=[,.])")
_SEEN = re.compile(rf"#(\d+) ({_NAME})")
_BOX = r"\\boxed\{[^{}]+\}"
_VERIFICATION = {
    "back": re.compile(r"<back>(.*?)(?:</back>|$)", re.DOTALL),
    "reflection": re.compile(r"<REFLECTION>(.*?)(?:</REFLECTION>|$)", re.DOTALL),
}


_TAG = r"</?(?:think|back|SUMMARY|CAPTION|REASONING|REFLECTION|CONCLUSION)>"
_INSIDE = rf"(?:(?!{_TAG}|\\boxed).)"


def _section(tag: str) -> str:
    return rf"<{tag}>{_INSIDE}+</{tag}>\s*"


_THINK, _BACK = _section("think"), _section("back")


def _format(mode: str, looks: int) -> re.Pattern[str]:
    """Pattern of a whole response."""
    if mode == "normal":
        return re.compile(_BOX)
    if mode == "reflection":
        first = "".join(map(_section, ("SUMMARY", "CAPTION", "REASONING", "REFLECTION")))
        conclusion = rf"<CONCLUSION>{_INSIDE}*{_BOX}\s*</CONCLUSION>"
        return re.compile(first + conclusion, re.DOTALL)
    verified = f"(?:{_BACK}{_THINK}){{{looks}}}" if mode == "back" else ""
    return re.compile(_THINK + verified + _BOX, re.DOTALL)


@dataclass(frozen=True)
class Marks:
    """How one response did.

    Attributes
    ----------
    answer, format
        Whether the boxed answer is the true one (``attnlens.answers``), and the format that of
        the mode.
    described
        Objects named in the first description with the right number in reading order, of those
        that are named or there; (right, all).
    size, mark
        Objects whose size, or mark, is stated inside ``<back>`` or ``<REFLECTION>`` and is true,
        every time that it is stated, of the objects named there or due; (right, all).
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
    describes = sample.mode != "normal"
    named = [f"{i} {o.name}" for i, o in enumerate(sample.scene.objects, start=1)]
    seen = [f"{i} {name}" for i, name in _SEEN.findall(text.split(" Total ")[0])]
    right = sum(seen.count(name) == 1 for name in named)
    return Marks(
        answer=is_right(boxed_answer(text), sample.question.answer),
        format=bool(_format(sample.mode, sample.question.looks).fullmatch(text.strip())),
        described=(right, max(len(seen), len(named))) if describes else (0, 0),
        size=_verified(sample, text, "size"),
        mark=_verified(sample, text, "mark"),
    )


def _verified(sample: Sample, text: str, attribute: str) -> tuple[int, int]:
    """Count the objects of which a verification says what is true, and nothing else."""
    if sample.mode not in _VERIFICATION:
        return (0, 0)
    stated: dict[str, set[str]] = {}
    sections = _VERIFICATION[sample.mode].findall(text)
    if sample.mode == "back" and sample.question.looks == 2:  # sizes first, marks second
        sections = sections[:1] if attribute == "size" else sections[1:]
    for part in sections:
        for name, size, mark in _FACT.findall(part):
            value = size if attribute == "size" else mark
            if value:
                stated.setdefault(name, set()).add(value)
    true = {o.name: {getattr(o, attribute)} for o in sample.scene.objects}
    right = sum(stated.get(name) == value for name, value in true.items())
    return (right, len(set(stated) | set(true)))


def score(
    vlm: VLM,
    scenes: int,
    seed: int = 0,
    *,
    modes: tuple[str, ...] = tuple(MODES),
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
        ``by_kind`` (``scenes``, ``answer``, ``verified`` and ``format`` by kind of question), and
        ``chance``:
        the fraction right of always giving the commonest answer of each kind (and of each
        attribute), and of naming sizes and marks of the right objects at random (None without the
        true picture, where other objects are named: ``study`` measures those facts).
    """
    if scenes < 1:
        raise InputError(f"{scenes} scenes: give at least 1")
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
    vlm: VLM, samples: list[Sample], *, batch_size: int, image: str, copy: bool
) -> dict[str, Any]:
    scenes = len(samples)
    responses: list[tuple[str, int]] = []
    for start in progress(range(0, scenes, batch_size), description=f"scoring {samples[0].mode}"):
        here = samples[start : start + batch_size]
        encoded = vlm.tokenizer([s.answer for s in here], add_special_tokens=False)["input_ids"]
        longest = max(map(len, encoded)) + 50
        responses += respond(vlm, here, max_new_tokens=longest, image=image, copy=copy)
    marks = [mark_response(s, text) for s, (text, _) in zip(samples, responses, strict=True)]
    expected: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_kind: dict[str, list[Marks]] = defaultdict(list)
    for sample, mark in zip(samples, marks, strict=True):
        question = sample.question
        by_kind[question.kind].append(mark)
        # the question says whether a size or a mark is asked for, not which is counted
        asked = question.asked if question.kind == "attribute" else ""
        expected[question.kind, asked].append(question.answer)
    commonest = sum(max(map(values.count, values)) for values in expected.values())
    true_picture = image == "true"
    return {
        **_fractions(marks),
        "described": _fraction(*_sum(marks, "described")),
        "verified_by": {name: _fraction(*_sum(marks, name)) for name in ("size", "mark")},
        "steps": float(np.mean([steps for _, steps in responses])),
        "by_kind": {kind: _fractions(of_kind) for kind, of_kind in sorted(by_kind.items())},
        "chance": {
            "answer": _fraction(commonest, scenes),
            "verified": float(np.mean(list(CHANCE.values()))) if true_picture else None,
            "verified_by": CHANCE if true_picture else dict.fromkeys(CHANCE),
        },
    }


def _fractions(marks: list[Marks]) -> dict[str, float | None]:
    sizes, mark = _sum(marks, "size"), _sum(marks, "mark")
    return {
        "scenes": len(marks),
        "answer": _fraction(sum(m.answer for m in marks), len(marks)),
        "format": _fraction(sum(m.format for m in marks), len(marks)),
        "verified": _fraction(sizes[0] + mark[0], sizes[1] + mark[1]),
    }


def _sum(marks: list[Marks], name: str) -> tuple[int, int]:
    pairs = [getattr(m, name) for m in marks]
    return sum(right for right, _ in pairs), sum(total for _, total in pairs)


def _fraction(right: int, total: int) -> float | None:
    return right / total if total else None
