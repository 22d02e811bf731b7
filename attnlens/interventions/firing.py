"""Which interventions act now: their triggers are asked before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.interventions.base import Edit, Intervention
from attnlens.interventions.editor import Reach
from attnlens.interventions.inject import Forcing
from attnlens.interventions.triggers import Moment, Trigger


@dataclass
class State:
    """How far one intervention has come.

    Attributes
    ----------
    part
        The intervention.
    fired
        How often it has acted.
    reach
        What an edit acts on, from when it has.
    counts
        How often each of its triggers has fired, by id.
    """

    part: Intervention
    fired: int = 0
    reach: Reach | None = None
    counts: dict[int, int] = field(default_factory=dict)


class Firing:
    """Asks the triggers of one generation.

    Parameters
    ----------
    parts
        The interventions.
    tokenizer, shares
        See ``Moment``.

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
        self.states = [State(part) for part in parts]
        self._tokenizer = tokenizer
        self._shares = shares

    def ask(self, stop: Callable[[Reach], None]) -> list[tuple[int, State]]:
        """Ask all triggers once.

        Parameters
        ----------
        stop
            Ends an edit whose ``until`` fires.

        Returns
        -------
        list of (int, State)
            For each intervention that is due: the step to act on, at most the next one, counted in
            tokens that triggers see. Forced text follows the last of them.
        """
        step = len(self.seen)
        due = []
        for state in self.states:
            part = state.part
            moment = Moment(step, self.seen, self._tokenizer, self._shares, state.counts)
            if isinstance(part, Edit) and state.reach is not None and state.reach.stop is None:
                if part.until is not None and self._fires(part.until, moment) is not None:
                    stop(state.reach)
                continue  # a second time would change nothing
            answer = self._fires(part.when, moment)
            if answer is not None:
                state.fired += 1
                due.append((step if isinstance(part, Forcing) else min(answer, step), state))
        return due

    @staticmethod
    def _fires(trigger: Trigger, moment: Moment) -> int | None:
        answer = trigger.answer(moment)
        if answer is not None:
            trigger.count(moment)
        return answer
