"""Score a model on held-out scenes, where the truth is known."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.boxed import boxed_answer
from attnlens.progress import progress
from attnlens.testbed.samples import HELD_OUT, Sample, make_sample
from attnlens.testbed.scenes import COLOURS, MARKS, SHAPES

if TYPE_CHECKING:
    from attnlens.vlm.load import VLM

MODES = ("normal", "cot", "back")

_NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_FACT = re.compile(rf"the ({_NAME}): ({'|'.join(MARKS)})")
_SEEN = re.compile(rf"\ban? ({_NAME})")
_BOX = r"\\boxed\{[^{}]+\}"
_FORMATS = {
    "normal": re.compile(_BOX),
    "cot": re.compile(rf"<think>(?:(?!</?think>).)+</think>\s*{_BOX}", re.DOTALL),
    "back": re.compile(
        r"<think>(?:(?!</?think>).)+</think>\s*<back>(?:(?!</?back>).)+</back>\s*"
        rf"<think>(?:(?!</?think>).)+</think>\s*{_BOX}",
        re.DOTALL,
    ),
}


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
    verified
        Marks stated inside ``<back>`` that are true, of those stated or due; (right, all).
    """

    answer: bool
    format: bool
    described: tuple[int, int]
    verified: tuple[int, int]


def held_out_sample(seed: int, index: int, mode: str, **options: Any) -> Sample:
    """Draw a sample that training never saw; a function of its arguments alone."""
    rng = np.random.default_rng((HELD_OUT + seed, index))
    return make_sample(rng, mode, **options)


def mark_response(sample: Sample, text: str) -> Marks:
    """Compare a response with the truth.

    Parameters
    ----------
    sample
        What was asked.
    text
        What the model wrote.
    """
    true_marks = {o.name: o.mark for o in sample.scene.objects}
    verification = re.search(r"<back>(.*?)(?:</back>|$)", text, re.DOTALL)
    stated = _FACT.findall(verification[1]) if verification else []
    right = len({name for name, mark in stated if true_marks.get(name) == mark})
    seen = _SEEN.findall(text.split("That makes")[0]) if sample.mode != "normal" else []
    return Marks(
        answer=boxed_answer(text) == sample.question.answer,
        format=bool(_FORMATS[sample.mode].fullmatch(text.strip())),
        described=(
            len(set(seen) & set(true_marks)),
            max(len(seen), len(true_marks)) if sample.mode != "normal" else 0,
        ),
        verified=(right, max(len(stated), len(true_marks)) if sample.mode == "back" else 0),
    )


def score(
    vlm: VLM,
    scenes: int,
    seed: int = 0,
    *,
    modes: tuple[str, ...] = MODES,
    batch_size: int = 50,
    max_new_tokens: int = 400,
    blank: bool = False,
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
    batch_size
        How many questions are generated together.
    max_new_tokens
        Longest response.
    blank
        Show an empty picture of the same size in place of the scene: what is right then was not
        seen.

    Returns
    -------
    dict
        By mode: ``answer``, ``format``, ``described``, ``verified`` as fractions (None where
        nothing was due), ``steps`` (mean length of responses), ``by_kind`` (``answer`` by kind of
        question), and ``chance``: the fraction right of always giving the commonest answer of each
        kind, and of naming marks at random.
    """
    return {
        mode: _score_mode(vlm, mode, scenes, seed, batch_size, max_new_tokens, blank)
        for mode in modes
    }


def _score_mode(
    vlm: VLM, mode: str, scenes: int, seed: int, batch_size: int, max_new_tokens: int, blank: bool
) -> dict[str, Any]:
    samples = [held_out_sample(seed, i, mode) for i in range(scenes)]
    responses: list[tuple[str, int]] = []
    for start in progress(range(0, scenes, batch_size), description=f"scoring {mode}"):
        here = samples[start : start + batch_size]
        responses += respond(vlm, here, max_new_tokens=max_new_tokens, blank=blank)
    marks = [mark_response(s, text) for s, (text, _) in zip(samples, responses, strict=True)]
    answers: dict[str, list[bool]] = defaultdict(list)
    expected: dict[str, list[str]] = defaultdict(list)
    for sample, mark in zip(samples, marks, strict=True):
        answers[sample.question.kind].append(mark.answer)
        expected[sample.question.kind].append(sample.question.answer)
    commonest = sum(max(map(values.count, values)) for values in expected.values())
    return {
        "scenes": scenes,
        "answer": _fraction(sum(m.answer for m in marks), scenes),
        "format": _fraction(sum(m.format for m in marks), scenes),
        "described": _fraction(*map(sum, zip(*(m.described for m in marks), strict=True))),
        "verified": _fraction(*map(sum, zip(*(m.verified for m in marks), strict=True))),
        "steps": float(np.mean([steps for _, steps in responses])),
        "by_kind": {kind: _fraction(sum(v), len(v)) for kind, v in sorted(answers.items())},
        "chance": {"answer": _fraction(commonest, scenes), "verified": 1 / len(MARKS)},
    }


def respond(
    vlm: VLM, samples: list[Sample], *, max_new_tokens: int = 400, blank: bool = False
) -> list[tuple[str, int]]:
    """Generate responses greedily as one batch; text without special tokens, and length.

    Parameters
    ----------
    vlm
        The model.
    samples
        What to ask.
    max_new_tokens
        Longest response.
    blank
        Show an empty picture of the same size in place of the scene.
    """
    import torch
    from PIL import Image

    prompts = []
    for sample in samples:
        picture = sample.scene.draw()
        if blank:
            picture = Image.new("RGB", picture.size, sample.scene.background)
        prompts.append(vlm.prompt(picture, sample.question.text, sample.mode))
    batch = vlm.batch(prompts)
    with torch.no_grad():
        sequences = vlm.model.generate(
            **batch.inputs, max_new_tokens=max_new_tokens, do_sample=False
        )
    generated = sequences[:, batch.segments.shape[1] :]
    end = vlm.tokenizer.eos_token_id
    rows = []
    for row in generated.tolist():
        ids = row[: row.index(end)] if end in row else row
        rows.append((vlm.tokenizer.decode(ids, skip_special_tokens=True), len(ids)))
    return rows


def _fraction(right: int, total: int) -> float | None:
    return right / total if total else None


__all__ = [
    "MODES",
    "Marks",
    "held_out_sample",
    "mark_response",
    "respond",
    "score",
]
