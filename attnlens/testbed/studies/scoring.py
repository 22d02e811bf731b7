"""Let a model answer questions about held-out scenes, and score the responses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.answers import boxed_answer, is_right
from attnlens.errors import InputError
from attnlens.models.modes import MODES
from attnlens.progress import progress
from attnlens.testbed.world.samples import Sample, held_out_sample, picture
from attnlens.testbed.world.scenes import COLOURS, MARKS, SHAPES, SIZES

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt

CHANCE = {"size": 1 / len(SIZES), "mark": 1 / len(MARKS)}
"""Chance of guessing a size or a mark; all are equally frequent."""
CHANCE_OF_BOTH = sum(CHANCE.values()) / len(CHANCE)
"""Mean chance of a size and a mark."""

REFLECTION = "<REFLECTION>"

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


def prompt_of(vlm: VLM, sample: Sample, image: str = "true") -> Prompt:
    """Return the prompt for a sample; see ``picture`` for ``image``."""
    return vlm.prompt(picture(sample, image), sample.question.text, sample.mode)


def respond(
    vlm: VLM,
    samples: list[Sample],
    *,
    max_new_tokens: int = 500,
    image: str = "true",
    copy: bool = False,
) -> list[tuple[str, int]]:
    """Generate responses greedily as one batch.

    Where one pass over the true answer shows each of its tokens to be the most likely one by a
    clear margin, greedy decoding gives that answer, and it is not generated again token by token.
    In half precision, where the two round differently, all are generated.

    Parameters
    ----------
    vlm
        The model.
    samples
        What to ask.
    max_new_tokens
        Longest response.
    image
        What is shown; see ``picture``.
    copy
        Whether all visual tokens are inserted again before ``<REFLECTION>``. The response is
        generated up to the tag, then continued from the prompt, the response so far, the image's
        tokens and the tag. Responses without the tag stay as they are.

    Returns
    -------
    list of (str, int)
        Text without special tokens, and its length in tokens, without inserted ones.
    """
    import torch

    prompts = [prompt_of(vlm, sample, image) for sample in samples]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    found: dict[int, list[int]] = {}
    if copy:
        options |= {"stop_strings": [REFLECTION], "tokenizer": vlm.tokenizer}
    elif vlm.model.dtype == torch.float32:
        found = true_responses(vlm, samples, prompts, max_new_tokens)
    others = [i for i in range(len(samples)) if i not in found]
    if others:
        batch = vlm.batch([prompts[i] for i in others])
        with torch.no_grad():
            sequences = vlm.model.generate(**batch.inputs, **options)
        rows = sequences[:, batch.segments.shape[1] :].tolist()
        found |= {i: _until_end(vlm, row) for i, row in zip(others, rows, strict=True)}
    generated = [found[i] for i in range(len(samples))]
    if copy:
        pairs = ((i, _split_at_tag(vlm, ids)) for i, ids in enumerate(generated))
        split = {i: pair for i, pair in pairs if pair is not None}
        for i, rest in _continue_with_copy(vlm, prompts, split, max_new_tokens).items():
            generated[i] = [*generated[i], *rest][:max_new_tokens]
    return [(vlm.tokenizer.decode(ids, skip_special_tokens=True), len(ids)) for ids in generated]


def true_responses(
    vlm: VLM, samples: list[Sample], prompts: list[Prompt], max_new_tokens: int
) -> dict[int, list[int]]:
    """Find the true answers that greedy decoding gives, in one pass.

    Returns
    -------
    dict of int to list of int
        The tokens of these answers, by the index of their sample.
    """
    import torch

    from attnlens.experiments.comparison import CLEAR_MARGIN

    end = vlm.tokenizer.eos_token_id
    encoded = vlm.tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    rows = [
        vlm.family.append(vlm.model.config, prompt.inputs, [*ids, end])
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]
    inputs = vlm.family.join(rows, vlm.tokenizer.pad_token_id)
    longest = max(map(len, encoded)) + 2
    with torch.no_grad():
        logits = vlm.model(**inputs, use_cache=False, logits_to_keep=longest).logits
    (first, second), best = logits.topk(2).values.unbind(-1), logits.argmax(-1)
    clear = best.masked_fill(first - second < CLEAR_MARGIN, -1).tolist()
    return {
        i: ids
        for i, ids in enumerate(encoded)
        if len(ids) < max_new_tokens and clear[i][-len(ids) - 2 : -1] == [*ids, end]
    }


def _until_end(vlm: VLM, ids: list[int]) -> list[int]:
    for end in (vlm.tokenizer.eos_token_id, vlm.tokenizer.pad_token_id):
        ids = ids[: ids.index(end)] if end in ids else ids
    return ids


def _split_at_tag(vlm: VLM, ids: list[int]) -> tuple[list[int], list[int]] | None:
    """Split off the tokens of the tag at the end; None if there is no tag."""
    for count in range(1, len(REFLECTION) + 1):
        if vlm.tokenizer.decode(ids[-count:]).strip() == REFLECTION:
            return ids[:-count], ids[-count:]
    return None


def _continue_with_copy(
    vlm: VLM,
    prompts: list[Prompt],
    split: dict[int, tuple[list[int], list[int]]],
    max_new_tokens: int,
) -> dict[int, list[int]]:
    """Continue after the prompt, the response, the image's tokens once more, and the tag.

    ``split`` (response and tag) and the result are keyed by the index of the prompt.
    """
    import torch

    if not split:
        return {}
    special = vlm.special_tokens
    rows = []
    for i, (before, tag) in split.items():
        prompt = prompts[i].inputs
        visual = int((prompt["input_ids"] == special.image).sum())
        more = [*before, *special.start, *[special.image] * visual, *special.end, *tag]
        rows.append(vlm.family.append(vlm.model.config, prompt, more, images=prompt))
    inputs = vlm.family.join(rows, vlm.tokenizer.pad_token_id)
    with torch.no_grad():
        sequences = vlm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    generated = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return {i: _until_end(vlm, ids) for i, ids in zip(split, generated, strict=True)}


@dataclass(frozen=True)
class Marks:
    """What is right in a response.

    Attributes
    ----------
    answer, format
        Whether the boxed answer is right (``attnlens.answers``), and the format that of the mode.
    described
        Objects that the description lists with the right number in reading order, and objects that
        it names or should name: (right, all).
    size, mark
        Objects whose size or mark is stated inside ``<back>`` or ``<REFLECTION>``, truly each
        time, and objects that are named or should be named there: (right, all).
    """

    answer: bool
    format: bool
    described: tuple[int, int]
    size: tuple[int, int]
    mark: tuple[int, int]

    @property
    def facts(self) -> tuple[int, int]:
        """Sizes and marks together: (right, all)."""
        return self.size[0] + self.mark[0], self.size[1] + self.mark[1]


def mark_response(sample: Sample, text: str) -> Marks:
    """Compare a response with the truth.

    Parameters
    ----------
    sample
        What was asked.
    text
        The response.
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
    if sample.mode not in _VERIFICATION:
        return (0, 0)
    stated: dict[str, set[str]] = {}
    sections = _VERIFICATION[sample.mode].findall(text)
    if sample.mode == "back" and sample.question.looks == 2:  # sizes first, marks second
        sections = sections[:1] if attribute == "size" else sections[1:]
    for section in sections:
        for name, size, mark in _FACT.findall(section):
            value = size if attribute == "size" else mark
            if value:
                stated.setdefault(name, set()).add(value)
    true = {o.name: {getattr(o, attribute)} for o in sample.scene.objects}
    right = sum(stated.get(name) == value for name, value in true.items())
    return (right, len(set(stated) | set(true)))


def _format(mode: str, looks: int) -> re.Pattern[str]:
    if mode == "normal":
        return re.compile(_BOX)
    if mode == "reflection":
        first = "".join(map(_section, ("SUMMARY", "CAPTION", "REASONING", "REFLECTION")))
        conclusion = rf"<CONCLUSION>{_INSIDE}*{_BOX}\s*</CONCLUSION>"
        return re.compile(first + conclusion, re.DOTALL)
    think = _section("think")
    verified = f"(?:{_section('back')}{think}){{{looks}}}" if mode == "back" else ""
    return re.compile(think + verified + _BOX, re.DOTALL)


def _section(tag: str) -> str:
    return rf"<{tag}>{_INSIDE}+</{tag}>\s*"


def score(
    vlm: VLM,
    scenes: int,
    seed: int = 0,
    *,
    modes: Sequence[str] = tuple(MODES),
    image: str = "true",
    copy: bool = True,
    batch_size: int = 50,
    **asked: Any,
) -> dict[str, Any]:
    """Let a model answer held-out questions greedily and count what is right.

    Parameters
    ----------
    vlm
        The model.
    scenes, seed
        How many held-out scenes per mode, and which.
    modes
        The modes to score.
    image
        What is shown; see ``picture``.
    copy
        Whether the visual tokens are inserted again before ``<REFLECTION>`` in mode ``reflection``
        (Visual Token COPY of Qwen-LookAgain, arXiv 2505.23558).
    batch_size
        Number of responses generated together.
    asked
        Options of ``make_sample``, such as ``kind`` and ``steps``.

    Returns
    -------
    dict
        By mode: ``answer``, ``format``, ``described``, ``verified`` as fractions (None if nothing
        was due), ``verified_by`` (size and mark), ``steps`` (mean length of responses), ``by_kind``
        (``scenes``, ``answer``, ``verified`` and ``format`` by kind of question), and ``chance``:
        the fraction right when always giving the most common answer of each kind (and of each
        attribute), and when guessing sizes and marks of the right objects (None without the true
        picture, since other objects are named then; ``study`` measures those facts).

    Raises
    ------
    InputError
        If there are no scenes, or as in ``make_sample``.
    """
    if scenes < 1:
        raise InputError(f"{scenes} scenes: give at least 1")
    table = {}
    for mode in modes:
        samples = [held_out_sample(seed, i, mode, **asked) for i in range(scenes)]
        responses: list[tuple[str, int]] = []
        for start in progress(range(0, scenes, batch_size), description=f"scoring {mode}"):
            here = samples[start : start + batch_size]
            encoded = vlm.tokenizer([s.answer for s in here], add_special_tokens=False)["input_ids"]
            longest = max(map(len, encoded)) + 50
            insert = copy and mode == "reflection"
            responses += respond(vlm, here, max_new_tokens=longest, image=image, copy=insert)
        table[mode] = _score_mode(samples, responses, true_picture=image == "true")
    return table


def _score_mode(
    samples: list[Sample], responses: list[tuple[str, int]], *, true_picture: bool
) -> dict[str, Any]:
    marks = [mark_response(s, text) for s, (text, _) in zip(samples, responses, strict=True)]
    expected: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_kind: dict[str, list[Marks]] = defaultdict(list)
    for sample, mark in zip(samples, marks, strict=True):
        question = sample.question
        by_kind[question.kind].append(mark)
        # the most common answer is that of sizes or of marks, since the question says which
        asked = question.asked if question.kind == "attribute" else ""
        expected[question.kind, asked].append(question.answer)
    commonest = sum(max(map(values.count, values)) for values in expected.values())
    return {
        **_fractions(marks),
        "described": _share(marks, "described"),
        "verified_by": {name: _share(marks, name) for name in ("size", "mark")},
        "steps": float(np.mean([steps for _, steps in responses])),
        "by_kind": {kind: _fractions(of_kind) for kind, of_kind in sorted(by_kind.items())},
        "chance": {
            "answer": commonest / len(samples),
            "verified": CHANCE_OF_BOTH if true_picture else None,
            "verified_by": CHANCE if true_picture else dict.fromkeys(CHANCE),
        },
    }


def _fractions(marks: list[Marks]) -> dict[str, float | None]:
    return {
        "scenes": len(marks),
        "answer": sum(m.answer for m in marks) / len(marks),
        "format": sum(m.format for m in marks) / len(marks),
        "verified": _share(marks, "facts"),
    }


def _share(marks: list[Marks], name: str) -> float | None:
    pairs = [getattr(m, name) for m in marks]
    total = sum(total for _, total in pairs)
    return sum(right for right, _ in pairs) / total if total else None


def table_text(table: dict[str, dict[str, Any]]) -> str:
    """Write what ``score`` returns as a table with a line per mode, and a line of kinds each."""
    columns = ("answer", "chance", "format", "described", "verified")
    lines = [f"{'mode':10}" + "".join(f"{name:>11}" for name in (*columns, "steps"))]
    for mode, row in table.items():
        values = [row["chance"]["answer"] if c == "chance" else row[c] for c in columns]
        cells = "".join(f"{'-' if v is None else format(v, '.1%'):>11}" for v in values)
        lines.append(f"{mode:10}{cells}{row['steps']:>11.1f}")
    for mode, row in table.items():
        kinds = ", ".join(
            f"{kind} {of['answer']:.1%} of {of['scenes']}" for kind, of in row["by_kind"].items()
        )
        lines.append(f"{mode}: {kinds}")
    return "\n".join(lines)
