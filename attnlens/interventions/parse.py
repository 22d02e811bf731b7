"""Interventions and triggers from the words of a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention
from attnlens.interventions.boost import Boost
from attnlens.interventions.close import InsertAndClose
from attnlens.interventions.copy import Copy
from attnlens.interventions.inject import Inject
from attnlens.interventions.knockout import Knockout
from attnlens.interventions.route import SELECTIONS, Route
from attnlens.interventions.triggers import At, AtStep, Every, Trigger, WhenVisualBelow

FORMS = (
    "copy, copy:blank, copy:text, copy:FILE, route:PERCENT, route:PERCENT:random, "
    "route:PERCENT:bottom, inject:TEXT, close:TEXT, boost:LOG_ODDS, pai:ALPHA, knockout"
)
"""What ``parse_intervention`` reads; several are joined by ``+``, but for ``inject`` and ``close``,
whose text is taken whole, and the name of a file that is there."""


def parse_trigger(text: str) -> Trigger:
    """Read a trigger.

    Parameters
    ----------
    text
        ``step:N``, ``every:N``, ``below:SHARE`` (look-back share), ``text:TEXT``, or any other
        text, which is looked for in the response (``<back>``).

    Raises
    ------
    InputError
        If a number is wanted and is none, the trigger refuses it, or the text is in no form but
        looks like one.
    """
    kind, colon, value = text.partition(":")
    as_text = f", or text:{text} to look for these very characters"
    if colon and kind in ("step", "every"):
        number = _number(text, value, int, as_text)
        return AtStep(int(number)) if kind == "step" else Every(int(number))
    if colon and kind == "below":
        return WhenVisualBelow(_number(text, value, float, as_text))
    if colon and kind == "text":
        return At(value)
    if re.fullmatch(r"[a-z]+:[0-9.]+", text):
        raise InputError(
            f"unknown trigger {text!r}: give step:N, every:N or below:SHARE; to look for these "
            f"very characters, text:{text}"
        )
    return At(text)


def parse_intervention(text: str, when: Trigger, positions: str = "fresh") -> Intervention:
    """Read an intervention in one of ``FORMS``.

    Parameters
    ----------
    text
        The words.
    when
        The trigger of all its parts.
    positions
        Of inserted visual tokens; see ``attnlens.interventions.POSITIONS``.

    Raises
    ------
    InputError
        If it is in none of the forms, or a number is out of range.
    """
    whole = text.startswith(("inject:", "close:")) or (
        text.startswith("copy:") and Path(text.removeprefix("copy:")).is_file()
    )
    if not whole and "+" in text:
        first, *others = [parse_intervention(part, when, positions) for part in text.split("+")]
        for other in others:
            first = first + other
        return first
    name, colon, value = text.partition(":")
    if name == "copy":
        source = value or None
        return Copy(when=when, source=source, positions="fresh" if source else positions)
    if name == "route" and colon:
        percent, _, select = value.partition(":")
        if select and select not in SELECTIONS:
            raise InputError(f"intervention {text!r}: select one of {', '.join(SELECTIONS)}")
        number = _number(text, percent, float)
        if not 0 <= number <= 100:
            raise InputError(f"intervention {text!r}: give a percentage from 0 to 100")
        return Route(
            when=when,
            percent=number,
            select=select or "top",
            positions=positions,
        )
    if name == "inject" and value:
        return Inject(value, when=when)
    if name == "close" and value:
        return InsertAndClose(when, close=value, insert=Copy(when=when, positions=positions))
    if name == "boost" and colon:
        return Boost(when=when, log_odds=_finite(text, value))
    if name == "pai" and colon:
        return Boost(when=when, alpha=_finite(text, value))
    if text == "knockout":
        return Knockout(when=when)
    raise InputError(f"unknown intervention {text!r}: give {FORMS}")


def _finite(text: str, value: str) -> float:
    number = _number(text, value, float)
    if not math.isfinite(number):
        raise InputError(f"intervention {text!r}: give a finite number")
    return number


def _number(text: str, value: str, kind: Callable[[str], float], advice: str = "") -> float:
    try:
        return kind(value)
    except ValueError as error:
        whole = "a whole number" if kind is int else "a number"
        raise InputError(
            f"{text!r}: {value!r} is not a number that fits; give {whole}{advice}"
        ) from error
