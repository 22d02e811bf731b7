"""Which maps of visual tokens a recording keeps: the mean over heads, and those of chosen heads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any

from attnlens.errors import InputError

MOST_BYTES = 64 * 2**20
"""Largest map that is kept without being asked for, in bytes."""
STEPS = 1024
"""How many steps are counted where the length of the response is not known beforehand."""


def is_small(layers: int, visual: int, steps: int | None = None, batch: int = 1) -> bool:
    """Whether the map of the mean over heads is kept where nobody says.

    It is if layers x visual tokens x steps x prompts x 4 bytes is at most ``MOST_BYTES``. Nothing
    of the machine is asked, so that a recording is the same everywhere.

    Parameters
    ----------
    layers, visual, batch
        Numbers of recorded layers, of visual tokens (in a batch, the most that a prompt has), and
        of prompts.
    steps
        Longest response, in tokens; ``STEPS`` where that is not known.
    """
    return 4 * layers * visual * (STEPS if steps is None else steps) * batch <= MOST_BYTES


def choose_heads(
    pairs: Iterable[tuple[int, int]] | None, layers: Collection[int], head_count: int
) -> dict[int, tuple[int, ...]]:
    """Return the heads whose maps are kept, by layer, both in order.

    Parameters
    ----------
    pairs
        (layer, head), each once; None for no head.
    layers
        The layers that are recorded.
    head_count
        Number of heads in each layer.

    Raises
    ------
    InputError
        If one is no such pair, is not there or not recorded, or is given twice.
    """
    chosen: dict[int, list[int]] = {}
    for layer, head in [] if pairs is None else map(_as_pair, _listed(pairs)):
        if layer not in layers:
            recorded = ", ".join(map(str, sorted(layers)))
            raise InputError(
                f"map_heads: layer {layer} of ({layer}, {head}) is not recorded: name one of "
                f"{recorded}"
            )
        if not 0 <= head < head_count:
            raise InputError(
                f"map_heads: there is no head {head} in layer {layer}: a layer has heads 0 to "
                f"{head_count - 1}"
            )
        heads = chosen.setdefault(layer, [])
        if head in heads:
            raise InputError(f"map_heads: ({layer}, {head}) is given twice: give each head once")
        heads.append(head)
    return {layer: tuple(sorted(chosen[layer])) for layer in sorted(chosen)}


def _listed(pairs: Any) -> list[Any]:
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"map_heads={pairs!r}: give (layer, head) pairs, such as [(3, 1)]")
    return list(pairs)


def _as_pair(pair: Any) -> tuple[int, int]:
    numbers = list(pair) if isinstance(pair, Iterable) and not isinstance(pair, str) else []
    whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in numbers)
    if len(numbers) != 2 or not whole:
        raise InputError(f"map_heads: {pair!r} is no (layer, head) pair, such as (3, 1)")
    return int(numbers[0]), int(numbers[1])
