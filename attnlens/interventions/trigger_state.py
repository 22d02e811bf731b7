"""Which interventions act now: their triggers are asked before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention
from attnlens.interventions.score_editor import EditScope
from attnlens.interventions.triggers import Moment, Trigger


@dataclass
class ArmedIntervention:
    """An intervention, and how often it has acted."""

    part: Intervention
    fired: int = 0
    scope: EditScope | None = None
    """What an edit acts on, once it has begun."""
    counts: dict[int, int] = field(default_factory=dict)
    """How often each of its triggers has fired, by id."""


class TriggerState:
    """Asks the triggers of one generation.

    Attributes
    ----------
    seen
        Ids of the tokens that triggers see: those of the response so far.
    states
        One for each intervention.
    """

    def __init__(
        self,
        parts: Iterable[Intervention],
        tokenizer: Any,
        shares: Callable[[str, int], Sequence[float]],
    ) -> None:
        self.seen: list[int] = []
        self.states = [ArmedIntervention(part) for part in parts]
        self._tokenizer = tokenizer
        self._shares = shares

    def ask(self, stop: Callable[[EditScope], None]) -> list[tuple[int, ArmedIntervention]]:
        """Ask all triggers once; ``stop`` ends an edit whose ``until`` fires.

        Returns the step to act on, at most the next one, for each intervention that is due. Steps
        are counted in tokens that triggers see; forced text follows the last of them.
        """
        step = len(self.seen)
        due = []
        for state in self.states:
            part = state.part
            moment = Moment(step, self.seen, self._tokenizer, self._shares, state.counts)
            if state.scope is not None and state.scope.stop is None:
                if part.until is not None and self._fires(part.until, moment) is not None:
                    stop(state.scope)
                continue  # a second time would change nothing
            answer = self._fires(part.when, moment)
            if answer is not None:
                state.fired += 1
                due.append((step if part.follows else min(answer, step), state))
        return due

    @staticmethod
    def _fires(trigger: Trigger, moment: Moment) -> int | None:
        answer = trigger.answer(moment)
        if answer is not None:
            trigger.count(moment)
        return answer


LONGEST_CHAIN = 1000
"""Tokens of forced text that one text may set off, beyond the texts' own."""


def check_forced_texts(parts: Iterable[Intervention], tokenizer: Any, vocabulary: int) -> None:
    """Refuse forced texts that trigger themselves or one another without end.

    A forced token that is not in the vocabulary, of this many tokens, is refused, too.
    """
    forcing = [part for part in parts if part.follows]
    ids = {id(part): part.forced_ids(tokenizer) for part in forcing}
    longest = LONGEST_CHAIN + sum(map(len, ids.values()))
    for part in forcing:
        unknown = [token for token in ids[id(part)] if token >= vocabulary]
        if unknown:
            raise InputError(
                f"{part.name}: there is no token {unknown[0]}; the model knows 0 to "
                f"{vocabulary - 1}"
            )
        firing = TriggerState(forcing, tokenizer, lambda *_: [])
        first = next(state for state in firing.states if state.part is part)
        first.counts[id(part.when)] = 1
        waiting: list[Intervention] = [part]
        while waiting:
            for token in ids[id(waiting.pop(0))]:
                firing.seen.append(token)
                waiting += [state.part for _, state in firing.ask(lambda _: None)]
            if len(firing.seen) > longest:
                raise InputError(
                    f"the text of {part.name} would set off forced text again and again: give "
                    "its trigger times=1"
                )
