"""One pass of the text model over a prompt and a response, that can be run again with changes.

The images are encoded once. What the text model is called with is kept, so a pass can be repeated
for a batch of changes, and it is that of the model whatever its family passes along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from attnlens.errors import InputError
from attnlens.experiments.force import differing_parts
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.tap import AttentionOnly, LayerAttention, attach, detach
from attnlens.recording.trace import Trace

CHUNK_ELEMENTS = 16_000_000
"""Largest number of logits (float32) held at a time, where they are read row by row."""
Response = Trace | Sequence[int]
"""A recorded response, or token ids."""


def response_ids(response: Response, prompt: Prompt, vocabulary: int) -> list[int]:
    """Return the token ids of a response to a prompt.

    Raises
    ------
    InputError
        If there are none, one is unknown or beyond the vocabulary, or a trace is that of another
        prompt or was made under an intervention, whose passes were others.
    """
    if isinstance(response, Trace):
        if not response.untouched:
            raise InputError(
                "the trace was made under an intervention: give one of an untouched run, or its "
                "token ids alone, which are then looked at without the intervention"
            )
        if differing_parts(prompt, response):
            raise InputError("the prompt is not that of the trace: give the one that was generated")
        ids = response.data["predicted_token_id"].values.tolist()
    else:
        ids = [int(token) for token in response]
    if not ids:
        raise InputError("the response has no token: give at least one id")
    if min(ids) < 0 and isinstance(response, Trace):
        raise InputError("the trace does not know every token of its response: give their ids")
    check_tokens(vocabulary, response=ids)
    return ids


def check_tokens(vocabulary: int, **tokens: Any) -> None:
    """Refuse token ids that a model does not have; each option is one id or a list of them."""
    for name, given in tokens.items():
        for token in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(token, int | np.integer) or not 0 <= token < vocabulary:
                raise InputError(
                    f"{name} holds {token!r}: give token ids from 0 to {vocabulary - 1}"
                    if isinstance(given, list | tuple)
                    else f"{name}={token!r}: give a token id from 0 to {vocabulary - 1}"
                )


class TextPass:
    """The text model's pass over a prompt and a response.

    The residual stream that enters each layer is kept: layers x tokens x width numbers.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    response
        What follows the prompt. Row ``len(prompt.segments) - 1 + t`` predicts token t.

    Attributes
    ----------
    parts
        The model's parts.
    ids
        Token ids of the response.
    prompt_length
        Number of prompt keys.
    length
        Number of tokens that are fed: prompt and response, except for the last one.
    segments
        str [length]: the segment of every token.
    visual_slots
        int64 [visual]: slots of the visual tokens.
    """

    def __init__(self, vlm: VLM, prompt: Prompt, response: Response) -> None:
        if not isinstance(vlm, VLM) or not isinstance(prompt, Prompt):
            raise InputError(
                f"({type(vlm).__name__}, {type(prompt).__name__}) cannot be looked into: give what "
                "attnlens.load and vlm.prompt return"
            )
        self.vlm, self.prompt = vlm, prompt
        self.parts = parts_of(vlm.model)
        self.ids = response_ids(response, prompt, self.vocabulary)
        if self.parts.without_attention:
            raise InputError(
                f"layer {self.parts.without_attention[0]} of this model attends without softmax: "
                "give a model whose layers all attend with it"
            )
        self.prompt_length = len(prompt.segments)
        self.length = self.prompt_length + len(self.ids) - 1
        self.segments = np.full(self.length, "response", dtype="<U10")
        self.segments[: self.prompt_length] = prompt.segments
        self.visual_slots = np.flatnonzero(prompt.segments == "visual")
        self._call: dict[str, Any] = {}

        def keep(_module: Any, args: tuple, options: dict[str, Any]) -> None:
            if args or options.get("inputs_embeds") is None:
                raise InputError(
                    f"{type(self.parts.text).__name__} is called in a way that cannot be repeated"
                )
            self._call = dict(options)

        self._entering: list[torch.Tensor] = []
        self._block_calls: list[tuple[tuple, dict[str, Any]]] = []
        self._leaving: list[torch.Tensor] = []
        hooks: list[Hook] = [(self.parts.text, "pre", keep)]
        for block in self.parts.blocks:
            hooks.append((block.layer, "pre", self._see_call))
            hooks.append((block.layer, "post", self._see_output))
        inputs = vlm.family.append(vlm.model.config, prompt.inputs, self.ids[:-1])
        with torch.no_grad(), hooked(hooks):
            vlm.model(**inputs, use_cache=False, logits_to_keep=1)

    def _see_call(self, _module: Any, args: tuple, options: dict[str, Any]) -> None:
        states = args[0] if args else options["hidden_states"]
        others = {name: value for name, value in options.items() if name != "hidden_states"}
        self._entering.append(states)
        self._block_calls.append((args[1:], others))

    def _see_output(self, _module: Any, _args: tuple, _options: dict, output: Any) -> None:
        self._leaving.append(_states_in(output))

    def entering(self, layer: int) -> torch.Tensor:
        """Return the residual stream that enters a layer: [tokens, width]."""
        return self._entering[layer][0]

    @cached_property
    def first_plain_layer(self) -> int:
        """The first layer from which on each takes what the one before returned, and no more.

        Some families add image features between early layers.
        """
        layer = self.parts.layer_count - 1
        while layer and torch.equal(self._entering[layer], self._leaving[layer - 1]):
            layer -= 1
        return layer

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model may predict."""
        return int(self.parts.unembed.weight.shape[0])

    def check_image(self) -> None:
        """Refuse a prompt without an image."""
        if not len(self.visual_slots):
            raise InputError("the prompt has no image: give one that has")

    def row(self, step: int) -> int:
        """Return the row of a step, which predicts the response's token of that number.

        Raises
        ------
        InputError
            If the response has no such token.
        """
        if not isinstance(step, int | np.integer) or not 0 <= step < len(self.ids):
            raise InputError(
                f"there is no step {step!r}: the response has steps 0 to {len(self.ids) - 1}"
            )
        return self.prompt_length - 1 + int(step)

    def run(
        self,
        hooks: Sequence[Hook] = (),
        rows: Sequence[int] | None = None,
        batch: int = 1,
        first_layer: int = 0,
    ) -> torch.Tensor:
        """Run the pass, and return the logits of some rows.

        Parameters
        ----------
        hooks
            What is read or changed, while it runs.
        rows
            Rows whose logits are wanted; those of all steps when not given.
        batch
            How often the pass is run side by side.
        first_layer
            Hooks change nothing before this layer, so that the pass may start there.

        Returns
        -------
        torch.Tensor
            float32 [batch, rows, vocabulary].
        """
        wanted = self._steps if rows is None else rows
        with torch.no_grad(), hooked(hooks):
            return self._logits(self._states(batch, first_layer), wanted)

    def read(
        self, hooks: Sequence[Hook] = (), first_layer: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the pass, and read the response's own tokens.

        Returns
        -------
        tuple of torch.Tensor
            Log-probability (nats) of each token of the response, float32 [steps], and the most
            likely one instead, int64 [steps]; on the CPU. At most ``CHUNK_ELEMENTS`` logits are
            held at a time.
        """
        own = torch.tensor(self.ids)[:, None]
        steps = torch.tensor(self._steps)
        at_once = max(1, CHUNK_ELEMENTS // self.vocabulary)
        found, best = [], []
        with torch.no_grad(), hooked(hooks):
            states = self._states(1, first_layer)
            for rows, ids in zip(steps.split(at_once), own.split(at_once), strict=True):
                logs = self._logits(states, rows.tolist())[0].log_softmax(-1)
                found.append(logs.gather(1, ids.to(logs.device))[:, 0].cpu())
                best.append(logs.argmax(-1).cpu())
        return torch.cat(found), torch.cat(best)

    @property
    def _steps(self) -> range:
        """Rows that predict the response."""
        return range(self.prompt_length - 1, self.length)

    def _states(self, batch: int, first_layer: int) -> torch.Tensor:
        """Run the text model, and return its last states."""
        if first_layer > 0 and first_layer >= self.first_plain_layer:
            return self._run_layers(first_layer, batch)
        call = {name: _repeated(name, value, batch) for name, value in self._call.items()}
        return self.parts.text(**call)[0]

    def _logits(self, states: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return self.parts.unembed(states[:, list(rows)]).float()

    def _run_layers(self, first: int, batch: int) -> torch.Tensor:
        """Run the layers from one on, and the last norm."""
        states = self._entering[first].expand(batch, -1, -1)
        for block, (args, options) in zip(
            self.parts.blocks[first:], self._block_calls[first:], strict=True
        ):
            states = _states_in(block.layer(states, *args, **options))
        return self.parts.norm(states)

    @contextmanager
    def attention(self, see: Callable[[LayerAttention], None]) -> Iterator[None]:
        """Show every layer's queries, keys and mask while a block runs passes."""
        listener = AttentionOnly(see)
        attach(self.parts, listener, GenerateWatch(self.prompt_length))
        try:
            yield
        finally:
            detach(self.parts, listener)


Hook = tuple[nn.Module, str, Callable]
"""A module, ``pre`` or ``post``, and a hook that is given options."""


@contextmanager
def hooked(hooks: Sequence[Hook]) -> Iterator[None]:
    """Hold hooks on modules for the time of a block."""
    with ExitStack() as stack:
        for module, when, hook in hooks:
            if module is None:
                raise InputError(
                    "a layer of this model has no projection of values or outputs of its own: "
                    "this lens cannot look into it"
                )
            register = (
                module.register_forward_pre_hook if when == "pre" else module.register_forward_hook
            )
            handle = register(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _states_in(output: Any) -> torch.Tensor:
    """Return the residual stream in what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def _repeated(name: str, value: Any, batch: int) -> Any:
    """Repeat an argument of the text model; position ids have their batch in the middle."""
    if isinstance(value, list) and all(isinstance(one, torch.Tensor) for one in value):
        return [one.repeat(batch, 1) for one in value]  # features of all visual tokens in a row
    if not isinstance(value, torch.Tensor) or batch == 1:
        return value
    place = value.ndim - 2 if name == "position_ids" else 0
    if value.ndim < 2 or value.shape[place] != 1:
        return value
    sizes = [-1] * value.ndim
    sizes[place] = batch
    return value.expand(sizes)
