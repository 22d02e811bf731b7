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
from attnlens.interventions.blocks import Piece, TextPiece
from attnlens.interventions.cache_editor import InsertionPlan
from attnlens.interventions.editor import EditScope
from attnlens.interventions.session import Event, Session
from attnlens.interventions.trigger_state import ArmedIntervention
from attnlens.models.cache import with_cache
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.tap import notify_response


class ForcedSession(Session):
    """Feeds a known response under an intervention.

    Text that the intervention forces stands between the response's tokens, after the one that made
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
        super().__init__(vlm, prompt, intervention)
        self._cache: Any = None
        self._fed = 0
        self._texts: list[Any] = []
        self._steps: list[int] = []
        """For each token that triggers see, the first step that acting before it acts on."""
        self._inside_text = False
        self._rope_start = 0

    def force(self, ids: Sequence[int]) -> torch.Tensor:
        """Feed a response; call once, inside the block.

        Parameters
        ----------
        ids
            Ids of its tokens, at least one.

        Returns
        -------
        torch.Tensor, float32 [steps, vocabulary], on the CPU
            Log-probabilities of the next token; step t predicts token t, so that the last token is
            never fed. Steps inside a trigger's text have those from before it was known.
        """
        from transformers import DynamicCache

        if not len(ids):
            raise InputError("the response has no token: give at least one id")
        found = []
        alone = bool(self._watched)  # the next trigger asks what each step attends to
        alone |= next(self._parts.text.parameters()).dtype != torch.float32
        with torch.no_grad():
            self._cache = DynamicCache(config=self._parts.text.config)
            found.append(self._pass(**self._prompt(), logits_to_keep=1))
            self._put_between(self._texts)
            waiting: list[int] = []
            for token in ids[:-1]:
                self._ids.append(int(token))
                self._trigger_state.seen.append(int(token))
                self._steps.append(len(self._ids))
                acting = self._due()
                if acting:
                    found += self._feed_response(waiting)
                    waiting = []
                    self._act(acting, self._cache, self._positions(1))
                waiting.append(int(token))
                if alone or self._texts:
                    found += self._feed_response(waiting)
                    waiting = []
                    self._put_between(self._texts)
            found += self._feed_response(waiting)
        notify_response(self._parts, torch.tensor([list(ids)]))
        return torch.cat(found)

    def _before(self, module: Any, args: tuple, options: dict[str, Any]) -> tuple:
        if self._started:  # what a later pass needs has been done before it
            return args, options
        return super()._before(module, args, options)

    def _feed_response(self, tokens: list[int]) -> list[torch.Tensor]:
        if not tokens:
            return []
        device = self.prompt.inputs["input_ids"].device
        options = self._positions(len(tokens))
        self._fed += len(tokens)
        self._cache_editor.move(self._cache, options, self._slot(self._fed) + 1)
        found = self._pass(input_ids=torch.tensor([tokens], device=device), **options)
        return [found]

    def _act(self, acting: list[Any], cache: Any, options: dict[str, Any]) -> None:
        """Act, but for forced texts: these wait until the step's query token has been fed."""
        self._texts = [state.part for _, state in acting if state.part.follows]
        others = [pair for pair in acting if not pair[1].part.follows]
        if others:
            super()._act(others, cache, options)

    def _step_of(self, answer: int) -> int:
        return self._steps[answer - 1] if answer else 0

    def _shares(self, definition: str, count: int) -> list[float]:
        return [] if self._inside_text else super()._shares(definition, count)

    def _put_between(self, texts: list[Any]) -> None:
        """Put texts after the last token that was fed, and what their words set off."""
        if not texts:
            return
        self._texts = []
        earlier = [] if self._editor is None else list(self._editor.reaches)
        text = _Text(self._slot(len(self._ids) + 1))
        self._inside_text = True
        while texts:
            self._walk(texts, text)
        self._inside_text = False
        plan = text.plan()
        if self._editor is not None:
            self._editor.step_back(earlier, text.start, plan.segments())
        text.settle()
        now = self._positions(1)["position_ids"]
        self._cache_editor.apply(plan, text.start, 0, self._cache, now)
        self._cache_editor.first_free = len(self._ids) + 1

    def _walk(self, texts: list[Any], text: _Text) -> None:
        """Go through the first of some texts, and note what its words set off."""
        step, part = len(self._ids) + 1, texts.pop(0)
        ids = part.token_ids(self.vlm.tokenizer)
        self.events.append(Event(part.name, step, step, forced=len(ids)))
        for token in ids:
            self._trigger_state.seen.append(token)
            self._steps.append(step)
            place = text.add(token)
            for answer, state in self._trigger_state.ask(partial(text.stop, token=place)):
                # what began before the text acts where the text begins
                at = max(0, place - (len(self._trigger_state.seen) - answer))
                if state.part.follows:
                    texts.append(state.part)
                    continue
                here = _InsideText(self, state, text, step, at)
                state.part.act(here)
                self.events.append(Event(state.part.name, step, step, here.inserted, here.kept))

    def _prompt(self) -> dict[str, Any]:
        """Give the pass over the prompt positions, so that none are kept on the model."""
        inputs = dict(self.prompt.inputs)
        family = self.vlm.family
        rope = family.rotary_positions(self._parts.generator, inputs)
        count = rope.shape[-1]
        self._rope_start = int(rope.max()) + 1
        slots = torch.arange(count, device=rope.device)
        return inputs | {"position_ids": family.position_ids(slots, rope)}

    def _positions(self, count: int) -> dict[str, Any]:
        """Positions of the tokens that come next, without what was inserted."""
        family, device = self.vlm.family, self.prompt.inputs["input_ids"].device
        slots = len(self.prompt.segments) + self._fed + torch.arange(count)
        rope, _ = family.positions_from(self._rope_start + self._fed, [count])
        positions = family.position_ids(slots, torch.from_numpy(rope))
        return {"position_ids": positions.to(device)}

    def _pass(self, **options: Any) -> torch.Tensor:
        generator = self._parts.generator
        output = generator(**options, **with_cache(generator, self._cache), use_cache=True)
        return output.logits[0].float().log_softmax(-1).cpu()


class _InsideText:
    """Where one intervention acts inside forced text; see ``attnlens.interventions.base.Place``."""

    def __init__(
        self, session: ForcedSession, armed: ArmedIntervention, text: _Text, step: int, at: int
    ) -> None:
        self.generation = session
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
        scope = self._armed.reach = self.generation._begin_edit(edit, self._text.start)
        self._text.starts.append((scope, self._at, len(self._text.before[self._at])))

    def force(self, ids: Sequence[int]) -> None:
        raise AssertionError("forced text waits until the text around it has been said")


class _Text:
    """Forced text, with what stands before its tokens and the edits that begin or end there."""

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

    def stop(self, reach: EditScope, token: int) -> None:
        reach.stop = self.start  # where it comes to lie is known when all has been said
        self.stops.append((reach, token))

    def settle(self) -> None:
        """Set where edits begin and end."""
        for reach, token, pieces in self.starts:
            reach.start = self._slot(token, pieces)
        for reach, token in self.stops:
            reach.stop = self._slot(token, len(self.before[token]))

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
