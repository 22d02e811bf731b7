"""Answers of a file with a verdict on each, by one rule or two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from attnlens.answers import Verdict, as_number, final_answer, judge
from attnlens.answers.grader import INSTALL
from attnlens.answers.look_back import look_back_verdict
from attnlens.errors import InputError
from attnlens.runs.answered import read_answers
from attnlens.runs.chunks import in_chunks
from attnlens.runs.responses import Response
from attnlens.runs.workers import Workers
from attnlens.stores import located
from attnlens.text import one_line, quoted, shortened

OURS, LOOK_BACK = "attnlens", "look-back"


@dataclass(frozen=True)
class Judged:
    """Answers of a file that can be used, with their verdicts.

    Attributes
    ----------
    responses
        The answers.
    truths
        The true answer of each; None where it is not known.
    verdicts
        By the name of the rule, one of each; None where the truth is not known.
    skipped
        How many records could not be used.
    traces
        Folder of their traces, if that is known.
    format
        Format of the file.
    """

    responses: list[Response]
    truths: list[str | None]
    verdicts: dict[str, list[Verdict | None]]
    skipped: int
    traces: Path | None
    format: str

    def values(self, rule: str) -> np.ndarray:
        """Return 1 for right, 0 for wrong and NaN for unknown answers."""
        verdicts = self.verdicts[rule]
        return np.array([as_number(None if one is None else one.right) for one in verdicts])


def judge_file(
    path: str, workers: Workers, folder: Path, *, rule: str, benchmark: str | None
) -> Judged:
    """Read a file or folder of answers and judge each.

    Parameters
    ----------
    path
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
    found, traces = read_answers(located(path))
    for assumed in found.assumed:
        print(one_line(f"attnlens score: {assumed}"), file=sys.stderr)
    good = [one for one in found.responses if not one.question.problem]
    bad = [one for one in found.responses if one.question.problem]
    if not good:
        raise InputError(f"no answer of {quoted(path)} can be used; {bad[0].question.problem}")
    for one in bad:
        problem = f"answer {one.id}: {one.question.problem}"
        print(one_line(f"attnlens score: skipped {problem}"), file=sys.stderr)
    truths = [_truth(one, benchmark) for one in good]
    if benchmark != "chair" and all(truth is None for truth in truths):
        raise InputError(f"no true answer is known in {quoted(path)}: give them as 'answer'")
    rules = list(dict.fromkeys((rule, OURS)))  # our rule is always asked, for the comparison
    texts = [(one.text, truth) for one, truth in zip(good, truths, strict=True)]
    judge_all = partial(_judge_all, rules)
    judged = list(in_chunks(workers, judge_all, texts, folder, description="answers"))
    verdicts = {
        name: [None if one is None else Verdict(*one[place]) for one in judged]
        for place, name in enumerate(rules)
    }
    return Judged(good, truths, verdicts, len(bad), traces, found.format)


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
