"""The normaliser of softmax rows, as the attention of a model has computed it itself.

A fused kernel returns, beside its output, the logarithm of the sum of the exponentials of each
row's scores. With it, a key's weight follows from its own score alone, so that mass of a long
answer needs no product with the answer's keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LogSums(TorchDispatchMode):
    """Watches the calls of a block for the fused attention of a CPU; changes nothing.

    Attributes
    ----------
    found
        float32 [batch, heads, rows]: natural logarithm of the sum of the exponentials of the
        scaled and masked scores of each row, of the last call; None where there was none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: torch.Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping | None = None
    ) -> Any:
        """Call the operator, and keep what it returns of the rows."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.found = result[1]
        return result
