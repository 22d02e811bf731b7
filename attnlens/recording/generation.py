"""What a recording learns from a call of ``model.generate``: its settings and its tokens.

The last generated token is never fed back to the model, so attention alone does not show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.models.cache import generates_with_cache

PROCESSORS = "logits_processor"
POSITIONAL = (
    "inputs",
    "generation_config",
    PROCESSORS,
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
)
"""Parameters of ``generate`` that may be given by position, in order."""
PLAIN_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "prefix_allowed_tokens_fn": None,
    "custom_generate": None,
    PROCESSORS: None,
}
"""Settings under which sampling draws each token from the model's own distribution."""
CROPPING = (
    "assistant_model",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "penalty_alpha",
    "use_mtp",
)
"""Settings under which ``generate`` crops the cache."""
TOP_K = 50
"""transformers' default for ``top_k``."""


def altered_by(settings: Mapping[str, Any]) -> list[str]:
    """List the settings that kept a response from following the model's own distribution.

    Parameters
    ----------
    settings
        The settings in force, as a trace records them.

    Returns
    -------
    list of str
        Each with its value, such as ``top_k=50``; empty where tokens were sampled at temperature 1
        with nothing cut off.
    """
    if not settings.get("do_sample"):
        return ["do_sample=False"]
    found = []
    for name, plain in PLAIN_SAMPLING.items():
        value = settings.get(name, TOP_K if name == "top_k" else plain)
        if value != plain and (value or plain):  # False, 0 and [] also mean: off
            found.append(f"{name}={value}")
    return found


class GenerateWatch:
    """Watches one call of ``generate``, and refuses what cannot be recorded before it starts.

    Parameters
    ----------
    prompt_length
        Number of prompt keys that the recording expects.
    prompts
        Token ids of the prompts that the recording was opened for, [1, keys] each, without their
        padding; empty where they are not known.
    """

    def __init__(self, prompt_length: int, prompts: Sequence[torch.Tensor] = ()) -> None:
        self._prompts = tuple(prompts)
        self._prompt_length = prompt_length
        self._called = False
        self._given_ids = False
        self.sequences: torch.Tensor | None = None
        """Generated token ids [batch, steps], without the prompt."""
        self.settings: dict[str, Any] = {}
        """The generation settings in force, JSON-able ones only."""
        self.end_ids: frozenset[int] = frozenset()
        """Ids that end a response."""
        self.pad_ids: frozenset[int] = frozenset()
        """Ids that fill up the shorter responses of a batch."""

    def before(self, model: Any, args: tuple, options: dict[str, Any]) -> None:
        """Check and note the arguments of a call that is about to start.

        Raises
        ------
        InputError
            If the cache would be reordered, cropped or left empty, or the prompt has another
            length.
        RuntimeError
            If it is the second call.
        """
        options = dict(zip(POSITIONAL, args, strict=False)) | options
        # what the caller's configuration leaves open comes from the model's own
        configs = (model.generation_config, options.get("generation_config"))
        settings = [c.to_diff_dict() for c in configs if c is not None]
        in_force = {k: v for part in settings for k, v in part.items() if v is not None}
        # an option that is None removes the setting: eos_token_id=None continues past the end
        in_force = {k: _number(v) for k, v in (in_force | options).items() if v is not None}
        self._refuse(in_force)
        if in_force.get("use_cache", True) and not generates_with_cache(model):
            raise InputError(
                "with gradient checkpointing in training mode no layer keeps a cache, and generate "
                "answers from the last token alone: call model.eval() first, or "
                "model.gradient_checkpointing_disable(), or generate with use_cache=False"
            )
        ids = options.get("input_ids", options.get("inputs"))
        if ids is not None and ids.shape[1] != self._prompt_length:
            raise InputError(
                f"generate was called with a prompt of {ids.shape[1]} tokens, but the recording "
                f"was opened for one of {self._prompt_length}: record the prompt that you generate"
            )
        if ids is not None and len(ids) == len(self._prompts):
            for row, prompt in enumerate(self._prompts):
                given_row = ids[row, ids.shape[1] - prompt.shape[1] :].cpu()
                if not torch.equal(given_row, prompt[0].cpu()):
                    raise InputError(
                        "generate was called with another prompt than the one that the recording "
                        f"was opened for (row {row}): record the prompt that you generate"
                    )
        if self._called:
            raise RuntimeError(
                "a recording holds one generation, and this is a second one: "
                "open a new `with attnlens.record(...)` block for it"
            )
        self._called = True
        self._given_ids = ids is not None
        self.settings = {k: v for k, v in in_force.items() if _is_plain(v)}
        # a setting that JSON cannot hold is noted by its type, where it alters what is sampled
        for name in PLAIN_SAMPLING:
            value = in_force.get(name)
            if value is not None and not _is_plain(value):
                listed = [type(one).__name__ for one in value] if name == PROCESSORS else None
                self.settings[name] = listed or type(value).__name__
        self.end_ids = _ids(in_force.get("eos_token_id"))
        self.pad_ids = _ids(in_force.get("pad_token_id"))

    def after(self, output: Any) -> None:
        """Note what the call returned."""
        sequences = getattr(output, "sequences", output)
        self.sequences = sequences[:, self._prompt_length if self._given_ids else 0 :].cpu()

    def _refuse(self, in_force: dict[str, Any]) -> None:
        if (beams := in_force.get("num_beams") or 1) > 1:
            raise InputError(
                f"beam search (num_beams={beams}) reorders the cache and cannot be recorded: "
                "use greedy or sampled generation (num_beams=1)"
            )
        for name in CROPPING:
            if in_force.get(name):
                raise InputError(
                    f"generation with {name} crops the cache and cannot be recorded: "
                    "use greedy or sampled generation"
                )


def refuse_continuous_batching(*_: Any, **__: Any) -> None:
    """Replace ``init_continuous_batching``, which ``generate_batch`` calls first: refuse always."""
    raise InputError(
        "continuous batching (generate_batch) mixes requests in one pass over pages of keys and "
        "cannot be recorded: call model.generate(**prompt.inputs), for several "
        "prompts with vlm.batch(prompts)"
    )


def _ids(value: Any) -> frozenset[int]:
    """Return token ids that came as a number, a list or a tensor."""
    if value is None:
        return frozenset()
    plain = value.tolist() if isinstance(value, torch.Tensor) else value
    return frozenset(plain if isinstance(plain, list | tuple) else [plain])


def _number(value: Any) -> Any:
    """Turn NumPy scalars into plain numbers."""
    return value.item() if isinstance(value, np.generic) else value


def _is_plain(value: Any) -> bool:
    """Whether a setting can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return value is not None
