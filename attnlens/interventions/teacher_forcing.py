"""Teacher forcing under an intervention, many tokens to a pass.

The response is known beforehand, so that its triggers are asked before its tokens are fed: passes
end only where an intervention acts. Mass and logits are those of the generation that is forced one
token at a time (``Inject``, ``ForceTokens``), up to float32 rounding. In half precision a pass over
many tokens rounds otherwise than many passes, which would look like an effect of the intervention:
there, tokens go one by one, as in the generation that they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.interventions.base import Edit, Intervention
from attnlens.interventions.cache_editor import InsertionPlan
from attnlens.interventions.pieces import Piece, TextPiece
from attnlens.interventions.running import Event, RunningIntervention
from attnlens.interventions.score_editor import EditScope
from attnlens.interventions.trigger_state import ArmedIntervention
from attnlens.models.cache import with_cache
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.tap import notify_response

PASS_TOKENS = 512
"""Most tokens of a response in one pass: what a pass holds does not grow with the response."""


class ForcedSession:
    """Feeds a known response under an intervention.

    Text that the intervention forces is fed between the response's tokens, after the one that made
    its trigger fire, and acts from the next step on; it is no step itself. Triggers see it between
    these tokens, as they would in a generation, and count its tokens as steps; what they set off
    inside it goes in with it (the visual share, which is known of steps alone, sets nothing off
    there, and ROUTE chooses by the steps before the text).

    Parameters
    ----------
    vlm, prompt, intervention
        As in ``attnlens.interventions.intervene``.

    Raises
    ------
    InputError
        As there.
    """

    def __init__(self, vlm: VLM, prompt: Prompt, intervention: Intervention) -> None:
        self._running = RunningIntervention(vlm, prompt, intervention)
        self._cache: Any = None
        self._fed = 0
        self._texts: list[Intervention] = []
        """Interventions whose text goes in after the next token that is fed."""
        self._steps: list[int] = []
        """For each token that triggers see, the first step that acting before it acts on."""
        self._rope_start = 0
        self._log_probabilities = True

    @property
    def events(self) -> list[Event]:
        """What has been done so far, in order."""
        return self._running.events

    @property
    def never_fired(self) -> list[str]:
        """Names of the interventions whose trigger has not fired."""
        return self._running.never_fired

    def __enter__(self) -> ForcedSession:
        """Attach to the model."""
        self._running.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave the model as it was found."""
        self._running.__exit__(*exception)

    def force(
        self, ids: Sequence[int], *, alike: bool = True, log_probabilities: bool = True
    ) -> torch.Tensor:
        """Feed a response; call once, inside the block.

        Besides the cache this takes the memory of one pass over the prompt or over at most
        ``PASS_TOKENS`` tokens, and what is returned.

        Parameters
        ----------
        ids
            Ids of its tokens, at least one.
        alike
            Whether tokens go one by one in half precision.
        log_probabilities
            Whether these are kept; else nothing is returned of them.

        Returns
        -------
        torch.Tensor, float32 [steps or 0, vocabulary], on the CPU
            Log-probabilities of the next token; step t predicts token t, so that the last token is
            never fed. Steps inside a trigger's text have those from before it was known.
        """
        from transformers import DynamicCache

        if not len(ids):
            raise InputError("the response has no token: give at least one id")
        running = self._running
        text = running.parts.text
        found = []
        # where the next trigger asks what each step attends to, or rounding must be alike
        half = next(text.parameters()).dtype != torch.float32
        alone = running.watches_shares or (alike and half)
        self._log_probabilities = log_probabilities
        with torch.no_grad():
            self._cache = DynamicCache(config=text.config)
            running.started = True
            self._act(running.due())
            found.append(self._pass(**self._prompt_inputs(), logits_to_keep=1))
            self._put_between()
            waiting: list[int] = []
            for token in map(int, ids[:-1]):
                running.ids.append(token)
                running.triggers.seen.append(token)
                self._steps.append(len(running.ids))
                acting = running.due(lambda answer: self._steps[answer - 1] if answer else 0)
                if acting:
                    found += self._feed_response(waiting)
                    waiting = []
                    self._act(acting)
                waiting.append(token)
                if alone or self._texts or len(waiting) == PASS_TOKENS:
                    found += self._feed_response(waiting)
                    waiting = []
                    self._put_between()
            found += self._feed_response(waiting)
        notify_response(running.parts, torch.tensor([list(ids)]))
        return torch.cat(found)

    def _feed_response(self, tokens: list[int]) -> list[torch.Tensor]:
        if not tokens:
            return []
        running = self._running
        device = running.prompt.inputs["input_ids"].device
        options: dict[str, Any] = {"position_ids": self._positions(len(tokens))}
        self._fed += len(tokens)
        running.cache.move(self._cache, options, running.slot(self._fed) + 1)
        return [self._pass(input_ids=torch.tensor([tokens], device=device), **options)]

    def _act(self, acting: list[tuple[int, ArmedIntervention]]) -> None:
        """Let all act except forced texts: these wait until the step's query token has been fed."""
        self._texts = [state.part for _, state in acting if state.part.follows]
        others = [(step, state) for step, state in acting if not state.part.follows]
        if others:
            self._running.act(others, self._cache, self._positions(1))

    def _put_between(self) -> None:
        """Put forced texts after the last token that was fed, and what their words set off."""
        texts, self._texts = self._texts, []
        if not texts:
            return
        running = self._running
        earlier = [] if running.editor is None else list(running.editor.scopes)
        inserted = _ForcedText(running.slot(len(running.ids) + 1))
        running.knows_shares = False
        while texts:
            texts += self._add_text(texts.pop(0), inserted)
        running.knows_shares = True
        plan = inserted.plan()
        if running.editor is not None:
            running.editor.step_back(earlier, inserted.start, plan.segments())
        inserted.bound_edits()
        running.cache.apply(plan, inserted.start, 0, self._cache, self._positions(1))
        running.cache.first_free = len(running.ids) + 1

    def _add_text(self, part: Intervention, text: _ForcedText) -> list[Intervention]:
        """Add what an intervention forces; return those that its words set off."""
        running = self._running
        step = len(running.ids) + 1
        ids = part.forced_ids(running.vlm.tokenizer)
        running.events.append(Event(part.name, step, step, forced=len(ids)))
        following = []
        seen = running.triggers.seen
        for token in ids:
            seen.append(token)
            self._steps.append(step)
            place = text.add(token)
            for answer, state in running.triggers.ask(partial(text.stop, token=place)):
                if state.part.follows:
                    following.append(state.part)
                    continue
                # what began before the text acts where the text begins
                at = max(0, place - (len(seen) - answer))
                here = _InsideText(running, state, text, step, at)
                state.part.act(here)
                running.events.append(Event(state.part.name, step, step, here.inserted, here.kept))
        return following

    def _prompt_inputs(self) -> dict[str, Any]:
        """Give the prompt's pass its positions, which the model would keep otherwise."""
        running = self._running
        inputs, family = dict(running.prompt.inputs), running.vlm.family
        rope = family.rotary_positions(running.parts.generator, inputs)
        self._rope_start = int(rope.max()) + 1
        slots = torch.arange(rope.shape[-1], device=rope.device)
        return inputs | {"position_ids": family.position_ids(slots, rope)}

    def _positions(self, count: int) -> torch.Tensor:
        """Position ids of the tokens that come next, without what was inserted."""
        prompt, family = self._running.prompt, self._running.vlm.family
        slots = len(prompt.segments) + self._fed + torch.arange(count)
        rope, _ = family.positions_from(self._rope_start + self._fed, [count])
        positions = family.position_ids(slots, torch.from_numpy(rope))
        return positions.to(prompt.inputs["input_ids"].device)

    def _pass(self, **options: Any) -> torch.Tensor:
        generator = self._running.parts.generator
        if not self._log_probabilities:
            options["logits_to_keep"] = 1
        output = generator(**options, **with_cache(generator, self._cache), use_cache=True)
        logits = output.logits[0] if self._log_probabilities else output.logits[0, :0]
        return logits.float().log_softmax(-1).cpu()


class _InsideText:
    """Where one intervention acts inside forced text; see ``attnlens.interventions.base.Place``."""

    def __init__(
        self,
        running: RunningIntervention,
        armed: ArmedIntervention,
        text: _ForcedText,
        step: int,
        at: int,
    ) -> None:
        self.generation = running
        self.step = step
        self.inserted = 0
        self.kept: tuple[int, ...] = ()
        self._armed = armed
        self._text = text
        self._at = at

    def insert(self, pieces: Sequence[Piece], kept: tuple[int, ...] = ()) -> None:
        self._text.before[self._at] += pieces
        self.inserted += sum(piece.count for piece in pieces)
        self.kept = kept

    def edit(self, edit: Edit) -> None:
        scope = self._armed.scope = self.generation.begin_edit(edit, self._text.start)
        self._text.starts.append((scope, self._at, len(self._text.before[self._at])))

    def force(self, ids: Sequence[int]) -> None:
        raise AssertionError("forced text waits until the text around it is complete")


class _ForcedText:
    """Forced text, with what comes before its tokens and the edits that begin or end there."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.ids: list[int] = []
        self.before: list[list[Piece]] = []
        self.starts: list[tuple[EditScope, int, int]] = []
        """Edits that begin: at which token, and after how many of the pieces before it."""
        self.stops: list[tuple[EditScope, int]] = []

    def add(self, token: int) -> int:
        self.ids.append(token)
        self.before.append([])
        return len(self.ids) - 1

    def stop(self, scope: EditScope, token: int) -> None:
        scope.stop = self.start  # moved by bound_edits when the text is complete
        self.stops.append((scope, token))

    def bound_edits(self) -> None:
        """Set where edits begin and end."""
        for scope, token, pieces in self.starts:
            scope.start = self._slot(token, pieces)
        for scope, token in self.stops:
            scope.stop = self._slot(token, len(self.before[token]))

    def _slot(self, token: int, pieces: int) -> int:
        earlier = [piece for before in self.before[:token] for piece in before]
        earlier += self.before[token][:pieces]
        return self.start + token + sum(piece.count for piece in earlier)

    def plan(self) -> InsertionPlan:
        pieces: list[Piece] = []
        for token, before in zip(self.ids, self.before, strict=True):
            last = pieces[-1] if pieces and not before else None
            if isinstance(last, TextPiece):
                pieces[-1] = TextPiece((*last.ids, token))
            else:
                pieces += [*before, TextPiece((token,))]
        return InsertionPlan([(piece, True) for piece in pieces])
