r"""What the answer in a response is, and when it is right: one rule compares all answers.

An answer and the truth are brought into one form, and the answer is right if the forms are equal.
The rule never guesses: an answer that it does not know to be the same is wrong.

1. Around the whole text these are removed, in any order and nesting: white space, one full stop
   at the end, ``$...$``, ``$$...$$``, ``\(...\)``, ``\[...\]``, ``**...**``, ``\boxed{...}``, and
   font commands (``\text{...}``, ``\mathrm{...}`` and the like). White space inside counts as one
   space. Full-width characters count as their ASCII forms, and U+2212 as a minus.
2. A single letter may be in brackets or before one, or before a colon: ``(B)``, ``[B]``, ``B)``,
   ``B:`` are ``B``.
3. Numbers are compared by value, exactly: integers, decimals (``.5``, ``0.50``), fractions of
   integers (``1/2``, ``\frac{1}{2}``, also ``\dfrac``, ``\tfrac``, ``\cfrac``, ``\frac12``), with a
   sign and with commas (``{,}``, ``\,``) between groups of three digits, as in English. So
   ``0.333`` is not ``1/3``. Numbers with a leading zero (``007``), mixed numbers (``1 1/2``),
   scientific notation and numbers with a unit are texts.
4. A percentage equals only percentages: ``50%`` is ``50.0 \%``, and neither ``50`` nor ``0.5``,
   since a truth without the sign does not say which of them it means.
5. Texts are compared character by character. Case is ignored in texts of words only (``b`` is
   ``B``, ``Red circle`` is ``red circle``); next to digits and signs it counts (``5 mW``).
6. No answer, or nothing inside the wrapping, is never right. Texts of more than 1,000 characters
   are compared as they are, without white space around them.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any, NamedTuple

from attnlens.errors import InputError
from attnlens.text import shortened

_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")
LONGEST = 1000
"""Longest answer that is read, in characters, to keep reading within milliseconds."""

_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_COMMAND = re.compile(
    r"\\(?:boxed|fbox|mbox|text|textrm|textbf|textit|textsf|texttt|textnormal"
    r"|mathrm|mathbf|mathit|mathsf|mathtt)\s*\{"
)
_OPTION = re.compile(r"\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[\]):]")
_SAME = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    ord("\N{IDEOGRAPHIC FULL STOP}"): ord("."),
    ord("\N{MINUS SIGN}"): ord("-"),
}
_SEPARATOR = re.compile(r",(?:\\!)?|\{,\}|\\,")
_INTEGER = rf"(?:[1-9][0-9]{{0,2}}(?:(?:{_SEPARATOR.pattern})[0-9]{{3}})+|0|[1-9][0-9]*)"
_DECIMAL = re.compile(rf"([+-]?)({_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)( ?\\?%)?")
_FRACTION = re.compile(
    rf"([+-]?)(?:({_INTEGER}) ?/ ?({_INTEGER})"
    rf"|\\[dtc]?frac ?\{{ ?([+-]?{_INTEGER}) ?\}} ?\{{ ?({_INTEGER}) ?\}}"
    r"|\\[dtc]?frac([0-9])([0-9]))"
)
_BESIDE_LETTERS = frozenset(" '\N{RIGHT SINGLE QUOTATION MARK}-,.;:!?()")


class Boxed(NamedTuple):
    r"""A ``\boxed{...}`` in a text.

    Attributes
    ----------
    start, stop
        Half-open span of its characters; one that is not closed reaches to the end of the text.
    inside
        Where its content begins.
    closed
        Whether its closing brace is there.
    """

    start: int
    inside: int
    stop: int
    closed: bool


def closing_braces(text: str) -> dict[int, int]:
    """Map each opening brace to its closing one, in linear time; unclosed ones are left out."""
    found, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            found[opened.pop()] = brace.start()
    return found


def boxed_spans(text: str) -> list[Boxed]:
    r"""Find every ``\boxed{...}``, inner braces counted; space before the brace is allowed.

    They are in order of their start; one inside another is listed after it.
    """
    closing = closing_braces(text)
    spans = []
    for opening in _OPENING.finditer(text):
        stop = closing.get(opening.end() - 1)
        closed = stop is not None
        spans.append(
            Boxed(opening.start(), opening.end(), len(text) if stop is None else stop + 1, closed)
        )
    return spans


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}``, stripped; None without one."""
    closed = [box for box in boxed_spans(text) if box.closed]
    return text[closed[-1].inside : closed[-1].stop - 1].strip() if closed else None


def final_answer(text: str) -> str | None:
    r"""Return the boxed answer, else the content of the last ``<CONCLUSION>``, else None.

    The five parts of Qwen-LookAgain (arXiv 2505.23558) end in a conclusion, and nothing in them
    asks for a box.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    parts = re.findall(r"<CONCLUSION>(.*?)(?:</CONCLUSION>|$)", text, re.DOTALL | re.IGNORECASE)
    return parts[-1].strip() or None if parts else None


def is_changed(answer: str | None, before: str | None) -> bool:
    """Whether an answer differs from an earlier one, by the same rule; None is an answer, too."""
    return (answer or "") != (before or "") and not is_right(answer, before or "")


def is_right(answer: str | None, truth: str) -> bool:
    """Return whether an answer is the true one, by the rule of this module.

    Parameters
    ----------
    answer
        From ``final_answer``, say; None where there is no answer.
    truth
        The true answer. The rule is the same both ways round.
    """
    if answer is None:
        return False
    form = _form(answer)
    return form != "" and form == _form(truth)


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
        if _form(value) == "":
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


def _form(text: str) -> str | tuple[Fraction, bool]:
    """Return the form to compare: a number, with whether it is a percentage, or a text."""
    if len(text) > LONGEST:
        return text.strip()
    bare = _bare(unicodedata.normalize("NFC", text).translate(_SAME))
    number = _number(bare)
    if number is not None:
        return number
    words = all(c.isalpha() or c in _BESIDE_LETTERS for c in bare)
    return bare.casefold() if words else bare


def _bare(text: str) -> str:
    """Remove what only wraps the whole text."""
    while True:
        before = text
        text = " ".join(text.split())
        if text.endswith(".") and not text.endswith(("..", " .")):  # dots in a row replace digits
            text = text[:-1]
        for start, stop in _PAIRS:
            inside = text[len(start) : -len(stop)]
            room = len(text) >= len(start) + len(stop)
            whole = room and text.startswith(start) and text.endswith(stop)
            if whole and start not in inside and stop not in inside:
                text = inside
                break
        command = _COMMAND.match(text)
        if command and closing_braces(text).get(command.end() - 1) == len(text) - 1:
            text = text[command.end() : -1]
        option = _OPTION.fullmatch(text)
        if option:
            text = next(filter(None, option.groups()))
        if text == before:
            return text


def _number(text: str) -> tuple[Fraction, bool] | None:
    """Value of a number and whether it is a percentage; None of anything else."""
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        sign, digits, percent = decimal.groups()
        return Fraction(f"{sign}{_SEPARATOR.sub('', digits)}"), bool(percent)
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        sign, *found = fraction.groups()
        above, below = (int(_SEPARATOR.sub("", digits)) for digits in found if digits)
        if below:
            return Fraction(-above if sign == "-" else above, below), False
    return None
