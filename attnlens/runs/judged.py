"""Answers of a file with a verdict on each, by one rule or two."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attnlens.answers import Verdict, as_number, final_answer, judge
from attnlens.answers.grader import INSTALL
from attnlens.answers.look_back import look_back_verdict
from attnlens.errors import InputError
from attnlens.runs.answered import read_answers
from attnlens.runs.chunks import in_chunks
from attnlens.runs.responses import Response
from attnlens.runs.spool import Lazy, Spool
from attnlens.runs.workers import Workers
from attnlens.stores import located
from attnlens.text import one_line, quoted, shortened

OURS, LOOK_BACK = "attnlens", "look-back"


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer with its verdicts.

    Attributes
    ----------
    response
        The answer.
    truth
        The true answer; None where it is not known.
    verdicts
        By the name of the rule; empty where the truth is not known.
    """

    response: Response
    truth: str | None
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Judged:
    """Answers of a file that can be used, with their verdicts.

    Attributes
    ----------
    answers
        The answers, which are kept on disk.
    values
        By the name of the rule, 1 for right, 0 for wrong and NaN for unknown answers. The rule that
        was asked for comes first.
    skipped
        How many records could not be used.
    traces
        Folder of their traces, if that is known.
    format
        Format of the file.
    """

    answers: Collection[JudgedAnswer]
    values: Mapping[str, np.ndarray]
    skipped: int
    traces: Path | None
    format: str


@dataclass(frozen=True)
class _Verdicts:
    """The verdicts on an answer by each rule; None where the truth is not known."""

    of: list[Any] | None


def judge_file(
    path: str,
    workers: Workers,
    folder: Path,
    *,
    rule: str,
    benchmark: str | None,
    answers_format: str | None = None,
) -> Judged:
    """Read a file or folder of answers and judge each.

    Parameters
    ----------
    path, answers_format
        As in ``read_answers``.
    workers, folder
        Who judges, and where results will be.
    rule
        ``attnlens`` or ``look-back``.
    benchmark
        The benchmark whose fields may hold the truth, if any.

    Raises
    ------
    InputError
        If it cannot be read, no record can be used, no truth is known (except for CHAIR, which has
        none), or math-verify is needed and missing.
    """
    found, traces = read_answers(located(path), answers_format)
    for assumed in found.assumed:
        print(one_line(f"attnlens score: {assumed}"), file=sys.stderr)
    count, known = _count_usable(found.responses, benchmark)
    if not count:
        first = next(iter(found.responses))
        raise InputError(
            f"no answer of {quoted(path)} can be used; {first.place}: {first.question.problem}"
        )
    for one in found.responses:
        if one.question.problem:
            problem = f"{one.place}: {one.question.problem}"
            print(one_line(f"attnlens score: skipped {problem}"), file=sys.stderr)
    if benchmark != "chair" and not known:
        raise InputError(f"no true answer is known in {quoted(path)}: give them as 'answer'")
    rules = list(dict.fromkeys((rule, OURS)))  # our rule is always asked, for the comparison

    def usable() -> Iterator[tuple[Response, str | None]]:
        good = (one for one in found.responses if not one.question.problem)
        return ((one, _truth(one, benchmark)) for one in good)

    texts = Lazy(lambda: ((one.text, truth) for one, truth in usable()), count)
    verdicts = Spool(lambda fields: _Verdicts(**fields))
    values = {name: np.full(count, np.nan) for name in rules}
    judged = in_chunks(workers, partial(_judge_all, rules), texts, folder, description="answers")
    for number, one in enumerate(judged):
        verdicts.append(_Verdicts(one))
        for name, (right, _) in zip(rules, one or (), strict=False):
            values[name][number] = as_number(right)

    def answers() -> Iterator[JudgedAnswer]:
        for (response, truth), found in zip(usable(), verdicts, strict=True):
            by_rule = zip(rules, found.of or (), strict=False)
            yield JudgedAnswer(response, truth, {name: Verdict(*one) for name, one in by_rule})

    return Judged(Lazy(answers, count), values, len(found.responses) - count, traces, found.format)


def _count_usable(responses: Iterable[Response], benchmark: str | None) -> tuple[int, int]:
    """Count the answers that can be used, and those of them whose truth is known."""
    count = known = 0
    for one in responses:
        if not one.question.problem:
            count += 1
            known += _truth(one, benchmark) is not None
    return count, known


def _judge_all(
    rules: Sequence[str], answers: Sequence[tuple[str, str | None]]
) -> list[list[Verdict] | None]:
    """Judge each answer by each rule, if its truth is known."""
    return [
        None if truth is None else [_verdict(rule, text, truth) for rule in rules]
        for text, truth in answers
    ]


def _verdict(rule: str, text: str, truth: str) -> Verdict:
    if rule == LOOK_BACK:
        return look_back_verdict(text, truth)
    verdict = judge(final_answer(text), truth)
    if verdict.right is None:
        answer = shortened(repr(final_answer(text)), 80)
        raise InputError(
            f"only math-verify can tell whether {answer} is {shortened(repr(truth), 80)}: {INSTALL}"
        )
    return verdict


def _truth(response: Response, benchmark: str | None) -> str | None:
    """Return the true answer: that of the record, or under the benchmark's own name."""
    own = {"pope": "label", "hallusionbench": "gt_answer"}.get(benchmark or "", "")
    truth = response.question.answer
    if truth is None and response.fields.get(own) is not None:
        truth = str(response.fields[own])
    if benchmark == "hallusionbench":
        return {"1": "yes", "0": "no"}.get(truth or "", truth)
    return truth
