"""The rule of Look-Back's evaluation script, to compare with its published numbers.

``eval/cal_score.py`` of Look-Back (arXiv 2507.03019) takes the content of the last box, or the word
"None" without one, and gives a point if mathruler's ``grade_answer`` does, else if math-verify
finds both equal, else, for a truth that is one capital letter, if that letter occurs anywhere in
the content in capitals: "BANANA" is an A, and an answer without a box is an E, N or O.
"""

from __future__ import annotations

from attnlens.answers.grader import ask
from attnlens.answers.rule import Verdict

SECONDS = 40
"""Longest time for one answer: math-verify's own limits, 5 seconds each, end before that."""


def look_back_verdict(response: str, truth: str) -> Verdict:
    """Judge a whole response by the rule of Look-Back's script.

    Parameters
    ----------
    response
        The text, in which the box is looked for.
    truth
        The true answer, as it is in the file.

    Returns
    -------
    Verdict
        ``step`` is ``grade_answer``, ``math-verify``, ``letter`` or ``none of them``. Where the
        comparison does not end or fails, as the script would, ``right`` is None.

    Raises
    ------
    InputError
        If the extra ``eval`` is not installed.
    """
    step = ask("look-back", response, truth, SECONDS)
    if step is None:
        return Verdict(None, "not decided")
    return Verdict(bool(step), step or "none of them")
