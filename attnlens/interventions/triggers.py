"""Triggers: when an intervention acts.

A trigger answers with a step. The intervention acts on that step and on those after it: inserted
tokens stand before the step's *query token*, so that the step is the first that can attend to
them. ``At("<back>")`` answers with the step whose query token is the tag's first token, although
the tag is known only when its last token has come.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from attnlens.errors import InputError
from attnlens.recording.response import token_texts


@dataclass(frozen=True)
class Moment:
    """What a trigger sees, just before a step.

    Attributes
    ----------
    step
        The step that comes next; response tokens 0 to ``step - 1`` are known, and the last of
        them is the step's query token.
    ids
        Ids of these response tokens.
    tokenizer
        Gives them their text.
    shares
        Function of a definition's name and a number n: visual share at the last n steps (fewer at
        the beginning), fractions. A share above every trigger's threshold may be returned as any
        number from the highest of them up to it.
    counts
        How often each trigger has fired, by its ``id``.
    """

    step: int
    ids: Sequence[int]
    tokenizer: Any
    shares: Callable[[str, int], Sequence[float]]
    counts: dict[int, int]


class Trigger(ABC):
    """Says at which step an intervention acts; join two by ``|`` (either) or ``&`` (both at once).

    Attributes
    ----------
    times
        How often it fires at most; None for no limit.
    """

    times: int | None

    @abstractmethod
    def fires(self, moment: Moment) -> int | None:
        """Return the step to act on, at most ``moment.step``; None where it does not fire."""

    def answer(self, moment: Moment) -> int | None:
        """Return what ``fires`` does; None where it has fired as often as it may."""
        if self.times is not None and moment.counts.get(id(self), 0) >= self.times:
            return None
        return self.fires(moment)

    def count(self, moment: Moment) -> None:
        """Count that it has fired."""
        moment.counts[id(self)] = moment.counts.get(id(self), 0) + 1

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of the visual shares that it asks for, by definition."""
        return {}

    @property
    def first_step(self) -> int:
        """Earliest step that it can answer with."""
        return 1

    def __or__(self, other: Trigger) -> Trigger:
        """Fire where either fires."""
        return _Joined((self, other), either=True)

    def __and__(self, other: Trigger) -> Trigger:
        """Fire where both fire at the same moment."""
        return _Joined((self, other), either=False)


def highest_thresholds(triggers: Iterable[Trigger]) -> dict[str, float]:
    """Return the highest threshold of any trigger, by definition of visual share."""
    highest: dict[str, float] = {}
    for trigger in triggers:
        for name, share in trigger.thresholds.items():
            highest[name] = max(share, highest.get(name, 0.0))
    return highest


def check_times(times: int | None) -> None:
    """Refuse a number of times below 1."""
    if times is not None and (not isinstance(times, int) or times < 1):
        raise InputError(f"times={times!r}: give a whole number of at least 1, or None")


@dataclass(frozen=True)
class At(Trigger):
    """At a text, such as a tag, whatever tokens spell it.

    Parameters
    ----------
    text
        What is looked for in the response. The intervention acts on the step whose query token
        holds the text's first character; the response is stepped back to there.
    times
        How often at most; None for no limit.
    """

    text: str
    times: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_times(self.times)
        if not self.text:
            raise InputError("At(''): give the text to look for, such as '<back>'")

    def fires(self, moment: Moment) -> int | None:
        """See ``Trigger``."""
        if not moment.ids:
            return None
        # every token holds at least one byte; more for a character cut at the window's start
        count = min(len(moment.ids), len(self.text.encode()) + 8)
        texts = token_texts(moment.tokenizer, list(moment.ids[-count:]))
        ends = list(accumulate(len(t) for t in texts))
        known = ends[-2] if len(ends) > 1 else 0
        # an occurrence that ends in the last token
        start = "".join(texts).find(self.text, max(0, known - len(self.text) + 1))
        if start < 0:
            return None
        first = next(i for i, end in enumerate(ends) if end > start)
        return moment.step - count + first + 1


@dataclass(frozen=True)
class AtStep(Trigger):
    """At one step.

    Parameters
    ----------
    step
        Step 0 is the last prompt position. It has no query token in the response: nothing can be
        inserted before it, but a boost or a knock-out can act on it. That takes a mask over the
        whole prompt in the first pass, heads x prompt tokens squared numbers.
    """

    step: int
    times: int | None = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_times(self.times)
        if not isinstance(self.step, int) or self.step < 0:
            raise InputError(
                f"AtStep({self.step!r}) is inside the prompt: give a step of at least 0"
            )

    @property
    def first_step(self) -> int:
        """See ``Trigger``."""
        return self.step

    def fires(self, moment: Moment) -> int | None:
        """See ``Trigger``."""
        return self.step if moment.step == self.step else None


@dataclass(frozen=True)
class Every(Trigger):
    """At every n-th step: n, 2n, 3n, ...

    Parameters
    ----------
    steps
        n.
    times
        How often at most; None for no limit.
    """

    steps: int
    times: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_times(self.times)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"Every({self.steps!r}): give a number of steps of at least 1")

    def fires(self, moment: Moment) -> int | None:
        """See ``Trigger``."""
        return moment.step if moment.step and moment.step % self.steps == 0 else None


@dataclass(frozen=True)
class WhenVisualBelow(Trigger):
    """When the visual share has stayed under a threshold.

    Parameters
    ----------
    share
        The threshold, a fraction. Inserted visual tokens do not count.
    definition
        ``mass`` (mean over layers and heads) or ``look-back``; as in
        ``attnlens.measures.visual_share``.
    patience
        How many steps in a row must be under it.
    times
        How often at most.
    """

    share: float
    definition: str = "look-back"
    patience: int = 1
    times: int | None = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_times(self.times)
        if not 0 < self.share <= 1:
            raise InputError(f"WhenVisualBelow({self.share!r}): give a share above 0, at most 1")
        if self.definition not in ("mass", "look-back"):
            raise InputError(
                f"definition {self.definition!r} is not measured while a response is generated: "
                "use 'mass' or 'look-back'"
            )
        if not isinstance(self.patience, int) or self.patience < 1:
            raise InputError(f"patience={self.patience!r}: give a number of steps of at least 1")

    @property
    def thresholds(self) -> dict[str, float]:
        """See ``Trigger``."""
        return {self.definition: self.share}

    def fires(self, moment: Moment) -> int | None:
        """See ``Trigger``."""
        found = moment.shares(self.definition, self.patience)
        below = len(found) == self.patience and all(value < self.share for value in found)
        return moment.step if below and moment.step > 0 else None


@dataclass(frozen=True)
class _Joined(Trigger):
    parts: tuple[Trigger, ...]
    either: bool
    times: int | None = None

    @property
    def thresholds(self) -> dict[str, float]:
        return highest_thresholds(self.parts)

    @property
    def first_step(self) -> int:
        earliest = [part.first_step for part in self.parts]
        return min(earliest) if self.either else max(earliest)

    def fires(self, moment: Moment) -> int | None:
        answers = [part.answer(moment) for part in self.parts]
        steps = [step for step in answers if step is not None]
        complete = steps if self.either else len(steps) == len(answers)
        if not complete:
            return None
        for part, step in zip(self.parts, answers, strict=True):
            if step is not None:
                part.count(moment)
        return min(steps)


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


def read_number(text: str, value: str, kind: Callable[[str], float], advice: str = "") -> float:
    """Read a number that is part of a text; anything else is refused."""
    try:
        return kind(value)
    except ValueError as error:
        whole = "a whole number" if kind is int else "a number"
        raise InputError(
            f"{text!r}: {value!r} is not a number that fits; give {whole}{advice}"
        ) from error
