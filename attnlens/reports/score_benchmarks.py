"""What the benchmarks of ``attnlens score`` take from the records of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attnlens.answers import final_answer
from attnlens.answers.forms import form_of
from attnlens.errors import InputError
from attnlens.measures.scores import chair, hallusionbench, mme, pope
from attnlens.measures.scores.hallusionbench import FIELDS
from attnlens.measures.scores.mme import says
from attnlens.measures.scores.pope import says_yes
from attnlens.runs.judged import OURS, Judged
from attnlens.runs.responses import Response
from attnlens.text import quoted, shortened


def _pope(judged: Judged, _: Any) -> dict[str, Any]:
    said, true = [], []
    for response, truth in _with_truth(judged):
        said.append(says_yes(final_answer(response.text) or response.text))
        true.append(_yes(truth, response) == "yes")
    return pope(said, true)


def _hallusionbench(judged: Judged, _: Any) -> dict[str, Any]:
    for one in judged.answers:
        missing = [name for name in FIELDS if name not in one.response.fields]
        if one.verdicts and missing:
            raise InputError(
                f"{one.response.place} has no {missing[0]!r}: give all of {', '.join(FIELDS)}"
            )
    known = [
        (bool(one.verdicts[OURS].right), one.response.fields)
        for one in judged.answers
        if one.verdicts
    ]
    return hallusionbench([right for right, _ in known], [fields for _, fields in known])


def _mme(judged: Judged, _: Any) -> dict[str, Any]:
    right, categories, pictures = [], [], []
    for response, truth in _with_truth(judged):
        answer = says(final_answer(response.text) or response.text)
        right.append(answer == _yes(truth, response))
        category = response.fields.get("category")
        if not isinstance(category, str):
            raise InputError(f"{response.place} has no 'category': MME's subtask goes there")
        categories.append(category)
        pictures.append(str(response.fields.get("question_id") or response.question.image))
    return mme(right, categories, pictures)


def _chair(judged: Judged, objects: Any) -> dict[str, Any]:
    texts, present = [], []
    for response in (one.response for one in judged.answers):
        listed = response.fields.get("objects")
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise InputError(
                f"{response.place} has no 'objects': give the list of those in its picture"
            )
        texts.append(response.text)
        present.append(listed)
    return chair(texts, present, objects)


BENCHMARKS: dict[str, Callable[[Judged, Any], dict[str, Any]]] = {
    "pope": _pope,
    "chair": _chair,
    "hallusionbench": _hallusionbench,
    "mme": _mme,
}


def _with_truth(judged: Judged) -> Iterator[tuple[Response, str]]:
    for one in judged.answers:
        if one.truth is not None:
            yield one.response, one.truth


def _yes(truth: str, response: Response) -> str:
    """Return a true answer that must be yes or no."""
    says_so = form_of(truth).says
    if not says_so:
        shown = shortened(repr(truth), 80)
        raise InputError(f"the truth of {response.place} is {shown}: here it is yes or no")
    return says_so


def read_objects(path: Path) -> dict[str, list[str]]:
    """Read a list of objects with synonyms: a JSON object, or lines of words joined by commas."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--objects {quoted(path)} cannot be read: {error}") from error
    if found is None:
        lines = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
        found = {words[0]: words[1:] for words in lines if words[0]}
    good = isinstance(found, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words)
        for words in found.values()
    )
    if not good or not found:
        raise InputError(
            f"--objects {quoted(path)}: give a line for each object, its name and synonyms joined "
            'by commas, or JSON {"dog": ["puppy"], ...}'
        )
    return found
