"""Interventions in a generation of ``model.generate``, scoped to a ``with`` block.

``model.generate`` is called as always and knows nothing of it: its sequence, processors, criteria
and streamers see the response alone. Hooks on the model look at each token that is fed in.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention
from attnlens.interventions.running import Event, RunningIntervention
from attnlens.models.cache import cache_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt


class Session:
    """Intervenes in one generation; made by ``attnlens.interventions.intervene``."""

    def __init__(self, vlm: VLM, prompt: Prompt, intervention: Intervention) -> None:
        self._running = RunningIntervention(vlm, prompt, intervention)
        self._stack = ExitStack()
        self._awaited: int | None = None
        """The forced token that ``generate`` was left no choice but to take."""

    @property
    def events(self) -> list[Event]:
        """What has been done so far, in order."""
        return self._running.events

    @property
    def never_fired(self) -> list[str]:
        """Names of the interventions whose trigger has not fired."""
        return self._running.never_fired

    def __enter__(self) -> Session:
        """Attach to the model."""
        with ExitStack() as stack:
            stack.enter_context(self._running)
            model = self._running.parts.generator
            # compiled decoding must call back into Python, not trace the hooks
            before, after = map(torch.compiler.disable, (self._before, self._after))
            stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(model.register_forward_hook(after).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave the model as it was found."""
        self._stack.close()

    def _before(self, module: Any, args: tuple, options: dict[str, Any]) -> tuple:
        running = self._running
        ids, cache = options.get("input_ids"), cache_of(module, args, options)
        if ids is None or cache is None:
            raise InputError(
                "interventions need token ids and a cache: call model.generate(**prompt.inputs) "
                "with use_cache on"
            )
        if not running.started:
            self._check_prompt(ids)
            running.started = True
        elif tuple(ids.shape) != (1, 1):
            raise InputError(
                f"a pass over {tuple(ids.shape)} tokens came after the prompt: interventions act "
                "on one generation, one token at a time"
            )
        else:
            self._take(int(ids[0, 0]))
        acting = running.due()
        if acting:
            running.act(acting, cache, options.get("position_ids"))
        if running.cache.inserted:
            running.cache.move(cache, options, running.slot(len(running.ids)) + 1)
        return args, options

    def _check_prompt(self, ids: torch.Tensor) -> None:
        prompt = self._running.prompt
        if tuple(ids.shape) != (1, len(prompt.segments)):
            raise InputError(
                f"generate was called with {ids.shape[0]} sequences of {ids.shape[1]} tokens, "
                f"and the intervention was made for one prompt of {len(prompt.segments)}: "
                "generate one response to that prompt"
            )
        if not torch.equal(ids, prompt.inputs["input_ids"].to(ids.device)):
            raise InputError(
                "generate was called with the tokens of another prompt than the intervention "
                "was made for: generate one response to that prompt"
            )

    def _take(self, token: int) -> None:
        """Note the token that ``generate`` took."""
        if self._awaited not in (None, token):
            raise InputError(
                f"the forced token {self._awaited} did not come ({token} did): a logits processor "
                "or warper of this generation keeps it out; leave that out, or force other text"
            )
        self._awaited = None
        self._running.ids.append(token)
        self._running.triggers.seen.append(token)

    def _after(self, _module: Any, _args: tuple, output: Any) -> Any:
        if self._running.forced:
            self._awaited = token = self._running.forced.pop(0)
            logits = torch.full_like(output.logits[:, -1:], float("-inf"))
            logits[..., token] = 0.0
            output.logits = torch.cat([output.logits[:, :-1], logits], dim=1)
        return output


def intervene(vlm: VLM, prompt: Prompt, intervention: Intervention) -> Session:
    """Intervene in the generation of a ``with`` block.

    Parameters
    ----------
    vlm, prompt
        From ``attnlens.load`` and ``vlm.prompt``; one response to one prompt.
    intervention
        One of ``attnlens.interventions``, or several joined by ``+``.

    Returns
    -------
    Session
        A context manager; ``events`` says what was done, ``never_fired`` what was not.
        ``model.generate`` inside the block keeps all it offers (sampling, processors, criteria,
        streamers), and where no trigger fires its tokens are those without. A recording
        (``attnlens.record``) around or inside sees the inserted keys as segment ``copied``.

    Raises
    ------
    InputError
        If something of the intervention does not fit the prompt or the model, before anything is
        run; or, when the generation starts, if it is no single one with a cache.

    Examples
    --------
    >>> with attnlens.interventions.intervene(vlm, prompt, Copy(when=At("<back>"))) as session:
    ...     vlm.model.generate(**prompt.inputs, max_new_tokens=256)  # doctest: +SKIP
    """
    return Session(vlm, prompt, intervention)
