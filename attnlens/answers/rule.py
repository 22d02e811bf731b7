"""The rule itself: a verdict on an answer, and the step that it was reached by."""

from __future__ import annotations

from decimal import Decimal
from numbers import Integral, Rational, Real
from typing import Any, NamedTuple

from attnlens.answers.expressions import to_compare
from attnlens.answers.forms import form_of
from attnlens.answers.grader import INSTALL, ask, is_there
from attnlens.errors import InputError
from attnlens.text import shortened


class Verdict(NamedTuple):
    """Whether an answer is right, and why.

    Attributes
    ----------
    right
        None where it cannot be known: the comparison needs math-verify, which is not installed.
    step
        What decided: ``no answer``, ``number``, ``text``, ``choice``, ``yes or no``,
        ``expression``, ``not decided`` (an expression that takes too long; it counts as wrong) or
        ``needs math-verify``.
    """

    right: bool | None
    step: str


def judge(answer: str | None, truth: str) -> Verdict:
    """Compare an answer with the true one, by the rule of ``attnlens.answers``.

    Parameters
    ----------
    answer
        From ``final_answer``, say; None where there is no answer.
    truth
        The true answer. The rule is the same both ways round.
    """
    if answer is None:
        return Verdict(False, "no answer")
    one, other = form_of(answer), form_of(truth)
    if not one.text:
        return Verdict(False, "no answer")
    if one.number is not None and other.number is not None:
        return Verdict(one.number == other.number, "number")
    if one.text == other.text:
        return Verdict(True, "choice" if one.letter else "text")
    letters = {(one.letter, other.marked_letter), (one.marked_letter, other.letter)}
    if any(letter and letter == marked for letter, marked in letters):
        return Verdict(True, "choice")
    if one.says and other.says and {one.text, other.text} & {"yes", "no"}:
        return Verdict(one.says == other.says, "yes or no")
    pair = to_compare(one, other)
    if pair is None:
        return Verdict(False, "choice" if one.letter and other.letter else "text")
    if not is_there("equal"):
        return Verdict(None, "needs math-verify")
    step = ask("equal", *pair)
    return Verdict(bool(step), "not decided" if step is None else "expression")


def is_right(answer: str | None, truth: str) -> bool:
    """Return whether an answer is the true one, by the rule of ``attnlens.answers``.

    Parameters
    ----------
    answer, truth
        As in ``judge``.

    Raises
    ------
    InputError
        If only math-verify could tell, and it is not installed.
    """
    right = judge(answer, truth).right
    if right is None:
        raise InputError(
            f"only math-verify can tell whether {shortened(repr(answer), 80)} is "
            f"{shortened(repr(truth), 80)}: {INSTALL}"
        )
    return right


def is_changed(answer: str | None, before: str | None) -> bool | None:
    """Whether an answer differs from an earlier one, by the same rule; None is an answer, too.

    None where only math-verify could tell, and it is not installed.
    """
    if (answer or "") == (before or ""):
        return False
    right = judge(answer, before or "").right
    return None if right is None else not right


def as_number(known: bool | None) -> float:
    """Return 1 for true, 0 for false, NaN for what is not known."""
    return float("nan") if known is None else float(known)


def true_answer(value: Any) -> str:
    """Return a true answer as the text that answers are compared with.

    Parameters
    ----------
    value
        A text or a finite number; a number stands for its decimal digits, a
        ``fractions.Fraction`` for itself.

    Raises
    ------
    InputError
        If it is something else, or a text that no answer can equal.
    """
    if isinstance(value, str):
        if not form_of(value).text:
            raise InputError(f"the true answer {shortened(repr(value), 80)} is empty: give a text")
        return value
    try:
        if isinstance(value, bool):  # a number to Python
            pass
        elif isinstance(value, Integral):
            return str(int(value))
        elif isinstance(value, Rational):
            return f"{value.numerator}/{value.denominator}"
        elif isinstance(value, Real):
            digits = Decimal(str(value))
            if digits.is_finite():
                return format(digits, "f")
        shown = shortened(repr(value), 80)
    except ValueError:  # Python writes no more than 4,300 digits
        shown = "a number of thousands of digits"
    raise InputError(f"the true answer is {shown}: give a text or a finite number")
