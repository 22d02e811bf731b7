"""MME: two yes-or-no questions about each picture (arXiv 2306.13394, section on the metric).

Of each subtask: accuracy, the percentage of questions answered rightly, and accuracy+, that of
pictures with both questions answered rightly. Its score is their sum, at most 200; the scores of
perception (10 subtasks) and cognition (4) are the sums over their subtasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.errors import InputError
from attnlens.measures.statistics import with_interval
from attnlens.text import counted

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def says(text: str) -> str:
    """Read an answer as MME's own script does: ``yes`` or ``no`` in its first four letters."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else ""


def mme(
    right: Sequence[bool], categories: Sequence[str], pictures: Sequence[str]
) -> dict[str, Any]:
    """Score answers.

    Parameters
    ----------
    right
        Whether each answer is right.
    categories
        The subtask of each question, one of ``PERCEPTION`` or ``COGNITION``.
    pictures
        Which picture each question is about.

    Returns
    -------
    dict
        ``categories``: by subtask, ``accuracy`` and ``accuracy_plus`` (fractions, each with
        ``mean``, ``low``, ``high``, Wilson's 95% interval, None for fewer than 12, and ``count``)
        and ``score``; ``perception`` and ``cognition``: the sums of scores; ``missing``: subtasks
        without an answer, which add nothing.

    Raises
    ------
    InputError
        If a subtask is unknown, a picture has another number of questions than two, or lengths
        differ.
    """
    if not len(right) == len(categories) == len(pictures):
        raise InputError(
            f"{len(right)} answers, {len(categories)} subtasks and {len(pictures)} pictures: give "
            "one of each per question"
        )
    by_category: dict[str, dict[str, list[bool]]] = {}
    for good, category, picture in zip(right, categories, pictures, strict=True):
        if category not in (*PERCEPTION, *COGNITION):
            known = ", ".join((*PERCEPTION, *COGNITION))
            raise InputError(f"subtask {category!r} is none of MME's: {known}")
        by_category.setdefault(category, {}).setdefault(picture, []).append(bool(good))
    scores: dict[str, Any] = {}
    for category, answers in by_category.items():
        for picture, both in answers.items():
            if len(both) != 2:
                raise InputError(
                    f"{counted(len(both), 'answer')} about {picture!r} in {category!r}: MME asks "
                    "two questions about each picture"
                )
        each = [float(one) for both in answers.values() for one in both]
        together = [float(all(both)) for both in answers.values()]
        accuracy = with_interval(each, proportion=True)
        plus = with_interval(together, proportion=True)
        score = 100 * (sum(each) / len(each) + sum(together) / len(together))
        scores[category] = {"accuracy": accuracy, "accuracy_plus": plus, "score": score}
    return {
        "categories": scores,
        **{
            name: sum(scores[one]["score"] for one in listed if one in scores)
            for name, listed in (("perception", PERCEPTION), ("cognition", COGNITION))
        },
        "missing": [one for one in (*PERCEPTION, *COGNITION) if one not in scores],
    }
