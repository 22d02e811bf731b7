"""Calls from inside a compiled graph that leave the graph whole.

Where a graph is split, inductor stores in half precision what it would have kept in float32, and
other tokens may follow. An operator that the compiler does not look into splits nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

_functions: dict[int, Callable[..., None]] = {}
"""What is called, by the number that stands for it in a graph."""
_numbers = itertools.count(1)


@functools.cache
def _operator() -> Any:
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)  # of newer versions of torch

    @torch.library.custom_op(
        "attnlens::call",
        # without it, the compiler would drop a call that returns nothing, or change the order
        mutates_args={"calls"},
        schema="(Tensor(a!) calls, int number, SymInt count, Tensor[] tensors, float factor) -> ()",
        # a CUDA graph would not call it again
        **({} if unsafe is None else {"tags": (unsafe,)}),
    )
    def call(
        calls: torch.Tensor, number: int, count: int, tensors: Sequence[torch.Tensor], factor: float
    ) -> None:
        calls.add_(1)
        _functions[number](count, tensors, factor)

    call.register_fake(lambda *_: None)
    return torch.ops.attnlens.call


class CompiledCalls:
    """Functions that compiled graphs call, in the order in which they were traced.

    Each is given an integer, tensors and a float. The tensors may be overwritten when it returns.

    Parameters
    ----------
    functions
        They are called by ``call``, which takes the place of one among them first.
    """

    def __init__(self, *functions: Callable[[int, Sequence[torch.Tensor], float], None]) -> None:
        self._numbers = [next(_numbers) for _ in functions]
        _functions.update(zip(self._numbers, functions, strict=True))
        operator, numbers = _operator(), self._numbers
        calls = torch.zeros((), dtype=torch.int64)

        def call(
            place: int, count: int = 0, tensors: Sequence[torch.Tensor] = (), factor: float = 0.0
        ) -> None:
            operator(calls, numbers[place], count, tensors, factor)

        self.call = call

    def remove(self) -> None:
        """Forget the functions; graphs that call them must not run any more."""
        for number in self._numbers:
            _functions.pop(number, None)
