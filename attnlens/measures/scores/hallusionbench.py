"""HallusionBench: the same question about a picture and about an edited one (arXiv 2310.14566).

Its section on metrics defines three accuracies: aAcc, of all questions; fAcc, of figures: one is
right if all questions about it are; qAcc, of question pairs: one is right if the question is
answered rightly about every figure that it is asked about. As in the benchmark's own script,
questions of category VS without a figure (``figure_id`` 0) are in no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnlens.errors import InputError
from attnlens.measures.statistics import with_interval

FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What identifies a question."""


def hallusionbench(right: Sequence[bool], questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score answers.

    Parameters
    ----------
    right
        Whether each answer is right.
    questions
        The ``FIELDS`` of each question, as the benchmark's file has them.

    Returns
    -------
    dict
        ``aAcc``, ``fAcc`` and ``qAcc``, each with ``mean``, ``low``, ``high`` (Wilson's 95%
        interval; None for fewer than 12) and ``count`` (questions, figures, pairs).

    Raises
    ------
    InputError
        If a question lacks a field, comes twice, or there are not as many as answers.
    """
    if len(right) != len(questions):
        raise InputError(f"{len(right)} answers to {len(questions)} questions: give one for each")
    figures: dict[tuple[str, ...], bool] = {}
    pairs: dict[tuple[str, ...], bool] = {}
    seen: set[tuple[str, ...]] = set()
    for good, question in zip(right, questions, strict=True):
        missing = [name for name in FIELDS if name not in question]
        if missing:
            raise InputError(f"an answer has no {missing[0]!r}: give all of {', '.join(FIELDS)}")
        category, subcategory, group, figure, number = (str(question[name]) for name in FIELDS)
        key = category, subcategory, group, figure, number
        if key in seen:
            raise InputError(f"question {key} comes twice: give each once")
        seen.add(key)
        pair = key[:3] + key[4:]
        pairs[pair] = pairs.get(pair, True) and bool(good)
        if (category, figure) != ("VS", "0"):
            figures[key[:4]] = figures.get(key[:4], True) and bool(good)
    return {
        name: with_interval([float(one) for one in values], proportion=True)
        for name, values in (
            ("aAcc", right),
            ("fAcc", figures.values()),
            ("qAcc", pairs.values()),
        )
    }
