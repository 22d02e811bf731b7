"""Interventions and triggers from the words of a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention, Words, read_number
from attnlens.interventions.triggers import At, AtStep, Every, Trigger, WhenVisualBelow


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
        number = read_number(text, value, int, as_text)
        return AtStep(int(number)) if kind == "step" else Every(int(number))
    if colon and kind == "below":
        return WhenVisualBelow(read_number(text, value, float, as_text))
    if colon and kind == "text":
        return At(value)
    if re.fullmatch(r"[a-z]+:[0-9.]+", text):
        raise InputError(
            f"unknown trigger {text!r}: give step:N, every:N or below:SHARE; to look for these "
            f"very characters, text:{text}"
        )
    return At(text)


def parse_intervention(text: str, when: Trigger, positions: str = "fresh") -> Intervention:
    """Read an intervention in one of the ``forms`` of the classes in ``attnlens.interventions``.

    Several are joined by ``+``, except for ``inject`` and ``close``, whose text is taken whole, and
    the name of a file that exists.

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
    kinds = list(_kinds(Intervention))
    if "+" in text and not any(kind.takes_whole(text) for kind in kinds):
        first, *others = [parse_intervention(part, when, positions) for part in text.split("+")]
        return sum(others, start=first)
    words = Words(text, when, positions)
    for kind in kinds:
        intervention = kind.from_words(words)
        if intervention is not None:
            return intervention
    forms = ", ".join(form for kind in kinds for form in kind.forms)
    raise InputError(f"unknown intervention {text!r}: give {forms}")


def _kinds(base: type) -> Iterator[Any]:
    """Yield the interventions that words are read as: those with ``forms`` of their own."""
    subclasses: list[Any] = base.__subclasses__()
    for kind in subclasses:
        if "forms" in vars(kind):
            yield kind
        yield from _kinds(kind)
