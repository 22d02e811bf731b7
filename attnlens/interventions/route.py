"""Visual Token ROUTE: the most attended visual tokens are inserted again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attnlens.errors import InputError
from attnlens.interventions.base import (
    Heads,
    Words,
    is_whole,
    keep_lists,
    select_heads,
)
from attnlens.interventions.copy import Copy
from attnlens.interventions.triggers import read_number

if TYPE_CHECKING:
    from attnlens.interventions.base import Generation
    from attnlens.models.prompt import Prompt

SELECTIONS = ("top", "random", "bottom")


@dataclass(frozen=True)
class Route(Copy):
    """Insert part of an image's visual tokens again, before the trigger, in reading order.

    Visual Token ROUTE of Qwen-LookAgain (arXiv 2505.23558, Eq. 5): by attention so far,
    ``a_j = (1 / L_y) sum_i A_ij`` over the ``L_y`` response tokens before the trigger, A being the
    mean over layers and heads. Where the response has no token before the trigger, the last prompt
    row is used instead.

    Parameters
    ----------
    when, image, positions, wrap, repeat
        As in ``Copy``. A chosen token keeps its place in the grid of its image.
    percent
        How many of the tokens, 0 to 100, rounded up; 0 inserts nothing, 100 is ``Copy``.
    select
        ``top``: the most attended (of equals, the first in reading order); the controls
        ``bottom``: the least attended, and ``random``: as many, drawn evenly.
    layers, heads
        Which layers and heads are averaged; all when not given.
    seed
        Seed of ``random``. The prompt and the step enter, too: each prompt has its own choice.
    """

    percent: float = 50.0
    select: str = "top"
    layers: Iterable[int] | None = None
    heads: Heads = None
    seed: int = 0

    forms = ("route:PERCENT", "route:PERCENT:random", "route:PERCENT:bottom")

    @classmethod
    def from_words(cls, words: Words) -> Route | None:
        """See ``Intervention``."""
        if words.name != "route":
            return None
        if words.value is None:
            raise InputError("intervention 'route' needs a percentage: write route:50, for example")
        percent, _, select = words.value.partition(":")
        if select and select not in SELECTIONS:
            raise InputError(f"intervention {words.text!r}: select one of {', '.join(SELECTIONS)}")
        number = read_number(words.text, percent, float)
        if not 0 <= number <= 100:
            raise InputError(f"intervention {words.text!r}: give a percentage from 0 to 100")
        return cls(words.when, positions=words.positions, percent=number, select=select or "top")

    def __post_init__(self) -> None:
        """Read generators, which can be read only once."""
        keep_lists(self)

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"route:{self.percent:g}" + ("" if self.select == "top" else f":{self.select}")

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        super().check(prompt, layers, heads)
        if not isinstance(self.percent, int | float) or not 0 <= self.percent <= 100:
            raise InputError(f"Route(percent={self.percent!r}): give 0 to 100")
        if self.select not in SELECTIONS:
            raise InputError(f"select={self.select!r}: use one of {', '.join(SELECTIONS)}")
        if not is_whole(self.seed) or self.seed < 0:
            raise InputError(f"Route(seed={self.seed!r}): give a whole number from 0 on")
        if self.source is not None:
            raise InputError("Route inserts tokens of the prompt's image: source is for Copy")
        select_heads(self.layers, self.heads, layers, heads)

    def prepare(self, generation: Generation) -> None:
        """Record the visual map, from which the choice is made."""
        if self.select == "random" or self.percent in (0, 100):
            return
        reach = self._reach(generation)
        recorder = generation.new_recorder(layers=list(reach), visual_map=reach)
        generation.listen(recorder, self)

    def chosen(self, generation: Generation, step: int, image: int) -> tuple[int, ...]:
        """See ``Copy``."""
        rows, columns = generation.prompt.grids[image]
        total = rows * columns
        # 64.4% of 250 is 161, whatever floats make of it
        count = math.ceil(round(total * self.percent / 100, 9))
        if count in (0, total):
            return tuple(range(count))
        if self.select == "random":
            rng = np.random.default_rng((int(self.seed), step, generation.images.checksum()))
            return tuple(sorted(rng.permutation(total)[:count].tolist()))
        weights = self._weights(generation, step, image)
        order = np.argsort(-weights if self.select == "top" else weights, kind="stable")
        return tuple(sorted(order[:count].tolist()))

    def _reach(self, generation: Generation) -> dict[int, tuple[int, ...]]:
        parts = generation.parts
        return select_heads(self.layers, self.heads, parts.layer_count, parts.head_count)

    def _weights(self, generation: Generation, step: int, image: int) -> np.ndarray:
        """Mean weight of each visual token over the response tokens before a step's query."""
        recorder = generation.recorder_of(self)
        recorder.flush()
        recorded = recorder.rows()
        first = next(iter(recorded.values()))
        slots = first.positions[first.positions >= recorder.layout.prompt_length - 1]
        steps = slots - recorder.inserted.before(slots) - (recorder.layout.prompt_length - 1)
        wanted = (steps >= 1) & (steps < step)
        if not wanted.any():
            wanted = steps == 0
        reach = self._reach(generation)
        sums, heads = np.zeros(recorder.layout.visual_slots.shape[1]), 0
        for layer, rows in recorded.items():
            assert rows.visual_weight is not None
            share = len(reach[layer])  # layers weigh by their number of heads in reach
            sums += share * rows.visual_weight[0, wanted].astype(np.float64).mean(0)
            heads += share
        of_visual = recorder.layout.image[0][recorder.layout.visual_slots[0]]
        return (sums / heads)[of_visual == image]
