"""One answer without its wrapping: the number, option, yes or no, or text that it is."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from attnlens.answers.extract import closing_braces

LONGEST = 1000
"""Longest answer that is read, in characters, to keep reading within milliseconds."""

_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ('"', '"'))
_COMMAND = re.compile(
    r"\\(?:boxed|fbox|mbox|text|textrm|textbf|textit|textsf|texttt|textnormal"
    r"|mathrm|mathbf|mathit|mathsf|mathtt)\s*\{"
)
_OPTION = re.compile(r"\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[\]):]")
_LABEL = re.compile(
    r"(?:the )?(?:correct |final )?(?:(?:answer|option|choice)(?: is|:| is:) "
    r"|(?:option|choice) (?=\W?[A-Z]\W?$))",
    re.IGNORECASE,
)
_MARKED = re.compile(r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z])[.):]) ?(?=\w[\w ]|\\)(.*)")
_OTHER_MARK = re.compile(r"[(\[][A-Za-z][)\]]|\b[A-Z][.):]")
_YES_NO = re.compile(r"(yes|no)(?:[,.;:!] ?| [-\u2013\u2014] )(?=\S)(.*)", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the) (?=\w\w)", re.IGNORECASE)
_SAME = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    ord("\N{IDEOGRAPHIC FULL STOP}"): ord("."),
    ord("\N{MINUS SIGN}"): ord("-"),
    ord("\N{LEFT DOUBLE QUOTATION MARK}"): ord('"'),
    ord("\N{RIGHT DOUBLE QUOTATION MARK}"): ord('"'),
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


class Form(NamedTuple):
    """An answer as it is compared.

    Attributes
    ----------
    bare
        The text without what only wraps it.
    number
        Its value and whether it is a percentage, where it is a number.
    text
        The text to compare: of words alone, without case and leading article.
    """

    bare: str
    number: tuple[Fraction, bool] | None
    text: str

    @property
    def is_long(self) -> bool:
        """Whether it is too long to be read."""
        return len(self.bare) > LONGEST

    @property
    def letter(self) -> str:
        """The option, in capitals, where the answer is one letter; else empty."""
        return self.bare.upper() if re.fullmatch("[A-Za-z]", self.bare) else ""

    @property
    def marked_letter(self) -> str:
        """The option that a longer answer begins with, as in ``B. red``; else empty."""
        found = None if self.is_long else _MARKED.fullmatch(self.bare)
        if not found or _OTHER_MARK.search(found[4]):
            return ""
        return str(found[1] or found[2] or found[3]).upper()

    @property
    def says(self) -> str:
        """``yes`` or ``no`` where the answer is that, alone or before a comma; else empty."""
        if self.text in ("yes", "no"):
            return self.text
        found = None if self.is_long else _YES_NO.fullmatch(self.bare)
        if not found:
            return ""
        word = found[1].lower()
        other = "no" if word == "yes" else "yes"
        return "" if re.search(rf"\b{other}\b", found[2], re.IGNORECASE) else word


def form_of(text: str) -> Form:
    """Take the wrapping off an answer; one of more than ``LONGEST`` characters stays as it is."""
    if len(text) > LONGEST:
        return Form(text.strip(), None, text.strip())
    bare = _bare(unicodedata.normalize("NFC", text).translate(_SAME))
    words = all(c.isalpha() or c in _BESIDE_LETTERS for c in bare)
    even = re.sub(" ?, ?", ", ", bare)
    return Form(bare, _number(bare), _ARTICLE.sub("", even, count=1).casefold() if words else even)


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
        label = _LABEL.match(text)
        if label:
            text = text[label.end() :]
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
