"""Which answers are handed to a computer algebra system, and in what spelling.

An answer is text from a stranger, and a short one can keep SymPy busy for hours or fill the memory
(``9^{9^{9^9}}``). So only what is known to be harmless is handed over: a limited alphabet and
vocabulary, and limits to length, digits and exponents.
"""

from __future__ import annotations

import re

from attnlens.answers.extract import closing_braces
from attnlens.answers.forms import Form

LONGEST_EXPRESSION = 200
"""Longest expression that is compared as one, in characters."""
MOST_DIGITS = 30
"""Most digits of a number in an expression."""
LARGEST_POWER = 1000
"""Largest product of the exponents in an expression: powers of powers multiply them."""

_FUNCTIONS = r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|sqrt"
_COMMAND = re.compile(
    rf"{_FUNCTIONS}|frac|cdot|times|div|pm|mp|leq?|geq?|lt|gt|infty|circ|cup|cap|q?quad"
    "|alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma"
    "|tau|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega"
)
_SPELLINGS = (
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\*\*"), "^"),
    (re.compile("\N{MULTIPLICATION SIGN}"), r"\\times "),
    (re.compile("\N{MIDDLE DOT}"), r"\\cdot "),
    (re.compile("\N{DIVISION SIGN}"), r"\\div "),
    (re.compile("\N{GREEK SMALL LETTER PI}"), r"\\pi "),
    (re.compile("\N{INFINITY}"), r"\\infty "),
    (re.compile("\N{LESS-THAN OR EQUAL TO}"), r"\\le "),
    (re.compile("\N{GREATER-THAN OR EQUAL TO}"), r"\\ge "),
    (re.compile("\N{SUPERSCRIPT TWO}"), "^2"),
    (re.compile("\N{SUPERSCRIPT THREE}"), "^3"),
    (re.compile("\N{DEGREE SIGN}"), r"^\\circ"),
    (re.compile(r"\^ ?(-\d{1,3}|\d{2,3})(?!\d)"), r"^{\1}"),
    (re.compile(r"\^ ?\(([^()]*)\)"), r"^{\1}"),
    (re.compile("\N{SQUARE ROOT} ?(\\d+|[a-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\?sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS}|pi)(?![A-Za-z])"), r"\\\1 "),
)
_ALPHABET = re.compile(r"[0-9A-Za-z\\{}()\[\]+\-*/^_=<>.,| ]*")
_UNCLEAR = re.compile(
    r"\d +\d"  # a mixed number, or two numbers
    r"|\d,\d{3}(?!\d)"  # one number, or two of them
    r"|(?<!\d)\.(?!\d)|\.\d*\."  # an ellipsis, a version
    rf"|\d{{{MOST_DIGITS + 1}}}"
)
_SIGN = re.compile(r"[+*/^=<>,]|\\[A-Za-z]|.-|\d ?[A-Za-z]|[A-Za-z] ?\d")
_VARIABLES = re.compile("[abcxyz]{2,4}")
_SUM = r"[+-]?(?:\d{1,3} ?[A-Za-z]?|[A-Za-z])(?: ?[+-] ?(?:\d{1,3}|[A-Za-z]))?(?: ?/ ?\d)?"
_EXPONENT = re.compile(rf"{_SUM}|[+-]?\\frac ?\{{?\d{{1,2}}\}}? ?\{{?\d{{1,2}}\}}?|\\circ|\\prime")
_SHORT_EXPONENT = re.compile(r"\\circ|[0-9A-Za-z]")


def to_compare(one: Form, other: Form) -> tuple[str, str] | None:
    """Return both in LaTeX where only algebra can tell whether they are equal, else None.

    Two plain numbers, or answers without any sign of mathematics, are compared without it.
    """
    first, second = _expression(one), _expression(other)
    if first is None or second is None:
        return None
    if all(
        form.number is not None or not _SIGN.search(latex)
        for form, latex in ((one, first), (other, second))
    ):
        return None
    letters = {*re.sub(r"\\[A-Za-z]+", "", f"{first} {second}")}
    if any(letter.isalpha() and letter.swapcase() in letters for letter in letters):
        return None  # math-verify does not tell m from M
    return first, second


def _expression(form: Form) -> str | None:
    """Return an answer in LaTeX, if it is an expression that may be compared; else None.

    Plain numbers are, too, but not percentages. Words, units and lists without brackets are not:
    their order or meaning would be guessed.
    """
    if form.number is not None:
        value, percentage = form.number
        short = max(len(str(value.numerator)), len(str(value.denominator))) <= MOST_DIGITS
        return None if percentage or not short else f"({value})"
    text = form.bare
    if not text or len(text) > LONGEST_EXPRESSION:
        return None
    for spelling, instead in _SPELLINGS:
        text = spelling.sub(instead, text)
    text = text.strip()
    if not _ALPHABET.fullmatch(text) or _UNCLEAR.search(text) or not re.search("[0-9A-Za-z]", text):
        return None
    if any(not _COMMAND.fullmatch(name) for name in re.findall(r"\\([A-Za-z]+)", text)):
        return None
    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    if any(not _VARIABLES.fullmatch(run) for run in re.findall("[A-Za-z]{2,}", letters)):
        return None
    if not _brackets_hold(text) or not _exponents_are_small(text):
        return None
    # letters side by side are a product; together they could be read as a unit
    return re.sub(
        r"(\\[A-Za-z]+)|([A-Za-z])(?=[A-Za-z])", lambda m: m[1] or f"{m[2]} ", text
    ).strip()


def _brackets_hold(text: str) -> bool:
    """Whether brackets close (half-open intervals mix them), with no comma outside of them."""
    depth = 0
    for character in re.sub(r"\\[{}]", lambda m: "(" if m[0] == r"\{" else ")", text):
        depth += character in "([{"
        depth -= character in ")]}"
        if depth < 0 or (character == "," and depth == 0):
            return False
    return depth == 0


def _exponents_are_small(text: str) -> bool:
    closing = closing_braces(text)
    product = 1
    for power in re.finditer(r"\^ ?", text):
        start = power.end()
        if start in closing:
            exponent = text[start + 1 : closing[start]].strip()
            known = _EXPONENT.fullmatch(exponent)
        else:
            known = _SHORT_EXPONENT.match(text, start)
            exponent = known[0] if known else ""
        if not known:
            return False
        product *= max(1, sum(map(int, re.findall(r"\d+", exponent))))
    return product <= LARGEST_POWER and not re.search(r"\^ ?(?:\w|\{[^{}]*\}) ?\^", text)
