"""Teacher forcing under an intervention, many tokens to a pass.

The response is known beforehand, so that its triggers are asked before its tokens are fed: passes
end only where an intervention acts. Mass and logits are those of the generation that is forced one
token at a time (``Inject``, ``ForceTokens``), up to float32 rounding. In half precision a pass over
many tokens rounds otherwise than many passes, which would look like an effect of the intervention:
there, tokens go one by one, as in the generation that they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention
from attnlens.interventions.blocks import TextPiece
from attnlens.interventions.inject import Forcing
from attnlens.interventions.session import Event, Session
from attnlens.interventions.stitch import Plan
from attnlens.recording.taps import tell_of_response
from attnlens.vlm.load import VLM
from attnlens.vlm.prompt import Prompt


class ForcedSession(Session):
    """Feeds a known response under an intervention.

    Text that the intervention forces stands between the response's tokens, after the one that made
    its trigger fire, and acts from the next step on; it is no step itself. Triggers see the
    response alone.

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
        self._texts: list[Forcing] = []
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
        alone = self._watches_share  # the next trigger asks what each step attends to
        alone |= next(self._family.text.parameters()).dtype != torch.float32
        with torch.no_grad():
            self._cache = DynamicCache(config=self._family.text.config)
            found.append(self._pass(**self._prompt(), logits_to_keep=1))
            self._put_between(self._texts)
            waiting: list[int] = []
            for token in ids[:-1]:
                self._ids.append(int(token))
                acting = self._fire()
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
        tell_of_response(self._family, torch.tensor([list(ids)]))
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
        self._stitch.move(self._cache, options, self._slot(self._fed) + 1)
        found = self._pass(input_ids=torch.tensor([tokens], device=device), **options)
        return [found]

    def _act(self, acting: list[Any], cache: Any, options: dict[str, Any]) -> None:
        """Act, but for forced texts: these wait until the step's query token has been fed."""
        self._texts = [state.part for _, state in acting if isinstance(state.part, Forcing)]
        others = [pair for pair in acting if not isinstance(pair[1].part, Forcing)]
        if others:
            super()._act(others, cache, options)

    def _put_between(self, texts: list[Forcing]) -> None:
        """Put texts after the last token that was fed."""
        self._texts = []
        step = len(self._ids) + 1
        for part in texts:
            ids = tuple(part.token_ids(self.vlm.tokenizer))
            plan, start = Plan([(TextPiece(ids), True)]), self._slot(step)
            if self._editor is not None:
                self._editor.step_back(list(self._editor.reaches), start, plan.segments())
            self._stitch.apply(plan, start, 0, self._cache, self._positions(1)["position_ids"])
            self._stitch.first_free = step
            self.events.append(Event(part.name, step, step, forced=len(ids)))

    def _prompt(self) -> dict[str, Any]:
        """Give the pass over the prompt positions, so that none are kept on the model."""
        inputs = dict(self.prompt.inputs)
        rope, _ = self._family.generator.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs["attention_mask"],
        )
        count = rope.shape[-1]
        self._rope_start = int(rope.max()) + 1 - count
        slots = torch.arange(count, device=rope.device)
        return inputs | {"position_ids": torch.cat([slots.expand(1, 1, -1), rope])}

    def _positions(self, count: int) -> dict[str, Any]:
        """Positions of the tokens that come next, [4, 1, count], without what was inserted."""
        device = self.prompt.inputs["input_ids"].device
        slots = len(self.prompt.segments) + self._fed + torch.arange(count, device=device)
        rope = (slots + self._rope_start).expand(3, 1, -1)
        return {"position_ids": torch.cat([slots.expand(1, 1, -1), rope])}

    def _pass(self, **options: Any) -> torch.Tensor:
        output = self._family.generator(**options, past_key_values=self._cache, use_cache=True)
        return output.logits[0].float().log_softmax(-1).cpu()
