"""Visual keys, hidden from the response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.interventions.base import (
    Edit,
    Heads,
    Words,
    check_visual,
    select_heads,
    which_image,
)
from attnlens.interventions.triggers import Trigger

if TYPE_CHECKING:
    from attnlens.models.prompt import Prompt


@dataclass(frozen=True)
class Knockout(Edit):
    """Hide the prompt's visual keys from the response, from the trigger on.

    Parameters
    ----------
    when
        The trigger.
    layers, heads
        Where they are hidden; everywhere when not given. Heads are numbers, or (layer, head)
        pairs.
    image
        Which image of the prompt; all when not given.
    box
        (left, top, right, bottom) in pixels of the image: only the visual tokens that overlap it.
        Needs ``image`` where the prompt has several.
    until
        As in ``Boost``.
    """

    when: Trigger
    layers: Iterable[int] | None = None
    heads: Heads = None
    image: int | None = None
    box: tuple[float, float, float, float] | None = None
    until: Trigger | None = None

    forms = ("knockout",)

    @classmethod
    def from_words(cls, words: Words) -> Knockout | None:
        """See ``Intervention``."""
        return cls(words.when) if words.text == "knockout" else None

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        check_visual("a knock-out", prompt)
        if self.image is not None or self.box is not None:
            which_image("a knock-out", prompt, self.image)
        select_heads(self.layers, self.heads, layers, heads)
        if self.box is not None and (
            len(self.box) != 4 or not np.isfinite(np.asarray(self.box, dtype=np.float64)).all()
        ):
            raise InputError(f"box={self.box!r}: give (left, top, right, bottom) in pixels")
        if not self.reach(prompt):
            info = prompt.images[which_image("a knock-out", prompt, self.image)]
            raise InputError(
                f"no visual token overlaps the box {self.box!r}: give one inside the image's "
                f"{info.width} x {info.height} pixels"
            )

    def reach(self, prompt: Prompt) -> Sequence[int]:
        """See ``Edit``."""
        if self.image is None and self.box is None:
            return np.flatnonzero(prompt.image_of_key >= 0).tolist()
        image = which_image("a knock-out", prompt, self.image)
        slots = np.flatnonzero(prompt.image_of_key == image)
        if self.box is not None:
            left, top, right, bottom = self.box
            boxes = prompt.boxes[image].reshape(-1, 4)
            overlaps = (
                (boxes[:, 0] < right)
                & (boxes[:, 2] > left)
                & (boxes[:, 1] < bottom)
                & (boxes[:, 3] > top)
            )
            slots = slots[overlaps]
        return slots.tolist()

    def bias(self, scores: torch.Tensor) -> torch.Tensor | float:
        """See ``Edit``."""
        return float("-inf")
