"""Seeing a call of ``model.generate`` from inside a recording: its settings and its tokens.

The last generated token is never fed back to the model, so attention alone cannot tell it. For the
time of a ``with`` block the model object gets a ``generate`` of its own that calls the real one.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from attnlens.errors import InputError


class GenerateWatch:
    """Watches one call of ``generate``.

    Parameters
    ----------
    model
        The module whose ``generate`` is called.
    prompt_length
        Number of prompt keys that the recording expects.
    """

    def __init__(self, model: Any, prompt_length: int) -> None:
        self._model = model
        self._prompt_length = prompt_length
        self._shadowed: Any = None
        self._own: Any = None
        self._called = False
        self.sequences: torch.Tensor | None = None
        """Generated token ids [batch, steps], without the prompt."""
        self.settings: dict[str, Any] = {}
        """The generation settings in force, JSON-able ones only."""
        self.end_ids: frozenset[int] = frozenset()
        """Ids that end a response."""

    def install(self) -> None:
        """Put the watching ``generate`` onto the model object."""
        self._shadowed = self._model.__dict__.get("generate")
        real = self._model.generate
        self._own = lambda *args, **options: self._generate(real, *args, **options)
        self._model.__dict__["generate"] = self._own

    def remove(self) -> None:
        """Take it off again."""
        if self._model.__dict__.get("generate") is not self._own:
            return  # somebody put theirs on top: theirs to remove
        if self._shadowed is None:
            del self._model.__dict__["generate"]
        else:
            self._model.__dict__["generate"] = self._shadowed

    def _generate(self, real: Any, *args: Any, **options: Any) -> Any:
        config = options.get("generation_config") or self._model.generation_config
        in_force = {**config.to_diff_dict(), **options}
        self._refuse(in_force)
        ids = options.get("input_ids", options.get("inputs", args[0] if args else None))
        if ids is not None and ids.shape[1] != self._prompt_length:
            raise InputError(
                f"generate was called with a prompt of {ids.shape[1]} tokens, but the recording "
                f"was opened for one of {self._prompt_length}: record the prompt that you generate"
            )
        if self._called:
            raise RuntimeError(
                "a recording holds one generation, and this is a second one: "
                "open a new `with attnlens.record(...)` block for it"
            )
        self._called = True
        self.settings = {k: v for k, v in in_force.items() if _is_plain(v)}
        end = options.get("eos_token_id", config.eos_token_id)
        if end is not None:
            values = end.tolist() if isinstance(end, torch.Tensor) else end
            self.end_ids = frozenset(values if isinstance(values, list | tuple) else [values])
        output = real(*args, **options)
        sequences = getattr(output, "sequences", output)
        self.sequences = sequences[:, 0 if ids is None else self._prompt_length :].cpu()
        return output

    def _refuse(self, in_force: dict[str, Any]) -> None:
        beams = in_force.get("num_beams") or 1
        if beams > 1:
            raise InputError(
                f"beam search (num_beams={beams}) reorders the cache and cannot be recorded: "
                "use greedy or sampled generation (num_beams=1)"
            )
        for name in ("assistant_model", "prompt_lookup_num_tokens", "penalty_alpha"):
            if in_force.get(name) is not None:
                raise InputError(
                    f"generation with {name} crops the cache and cannot be recorded: "
                    "use greedy or sampled generation"
                )


def _is_plain(value: Any) -> bool:
    """Whether a setting can be written as JSON; tensors, caches and processors cannot."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return value is not None
