"""POPE: is an object in the picture, yes or no (arXiv 2305.10355, section 5).

With yes as the positive class, TP, FP, TN and FN counted over all questions:
accuracy = (TP + TN) / all, precision = TP / (TP + FP), recall = TP / (TP + FN),
F1 = 2 precision recall / (precision + recall), yes share = (TP + FP) / all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.statistics import with_interval


def says_yes(text: str) -> bool:
    """Read an answer as POPE's own script does.

    No is a first sentence with the word ``No``, ``no`` or ``not`` (commas left out); anything else
    is yes, also a text that says neither.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope(said: Sequence[bool], true: Sequence[bool]) -> dict[str, Any]:
    """Score yes-or-no answers.

    Parameters
    ----------
    said, true
        Whether the answer, and the truth, is yes; one of each per question.

    Returns
    -------
    dict
        ``accuracy``, ``precision``, ``recall`` and ``yes_share``, each with ``mean``, ``low``,
        ``high`` (Wilson's 95% interval; None for fewer than 12 answers) and ``count`` (what it is a
        fraction of); ``f1``; and the counts ``tp``, ``fp``, ``tn``, ``fn``. None stands for a
        fraction of nothing.

    Raises
    ------
    InputError
        If there are not as many answers as truths.
    """
    if len(said) != len(true):
        raise InputError(f"{len(said)} answers and {len(true)} truths: give one for each")
    yes, positive = np.array(said, dtype=bool), np.array(true, dtype=bool)
    tp, fp = int((yes & positive).sum()), int((yes & ~positive).sum())
    fn = int((~yes & positive).sum())
    scores = {
        "accuracy": yes == positive,
        "precision": positive[yes],
        "recall": yes[positive],
        "yes_share": yes,
    }
    return {
        **{
            name: with_interval(values.astype(float).tolist(), proportion=True)
            for name, values in scores.items()
        },
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "tp": tp,
        "fp": fp,
        "tn": len(yes) - tp - fp - fn,
        "fn": fn,
    }
