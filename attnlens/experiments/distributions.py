"""The model's own next-token distributions during a generation, whatever is forced or sampled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attnlens.models.families import parts_of
from attnlens.models.load import VLM


@contextmanager
def kept_log_probabilities(vlm: VLM) -> Iterator[list[torch.Tensor]]:
    """Keep each step's next-token log-probabilities, float32 [vocabulary] on the CPU.

    Open it before a session of ``attnlens.interventions``: what that forces is then not seen here.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: tuple, output: Any) -> None:
        kept.append(output.logits[0, -1].float().log_softmax(-1).cpu())

    handle = parts_of(vlm.model).generator.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
