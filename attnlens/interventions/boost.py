"""Attention scores of visual keys, raised."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
class Boost(Edit):
    """Raise the scores of the prompt's visual keys, from the trigger on.

    Parameters
    ----------
    when
        The trigger.
    log_odds
        Added to every score in reach: in the first layer it raises the log-odds of visual mass by
        itself, exactly (later layers see changed queries, too). Negative numbers lower it.
    alpha
        In place of ``log_odds``: scores are raised by ``alpha`` times their absolute value, the
        rule of PAI (arXiv 2407.21771, Eq. 5).
    layers, heads
        What is boosted; all when not given. Heads are numbers, or (layer, head) pairs.
    image
        Which image of the prompt; all when not given.
    until
        Trigger that ends it: the step after the one that predicts the trigger's last token is the
        first that is untouched again.
    """

    when: Trigger
    log_odds: float | None = None
    alpha: float | None = None
    layers: Iterable[int] | None = None
    heads: Heads = None
    image: int | None = None
    until: Trigger | None = None

    forms = ("boost:LOG_ODDS", "pai:ALPHA")

    @classmethod
    def from_words(cls, words: Words) -> Boost | None:
        """See ``Intervention``."""
        if words.value is None or words.name not in ("boost", "pai"):
            return None
        number = words.number(words.value)
        if words.name == "pai":
            return cls(words.when, alpha=number)
        return cls(words.when, log_odds=number)

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"pai:{self.alpha:g}" if self.log_odds is None else f"boost:{self.log_odds:g}"

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        if (self.log_odds is None) == (self.alpha is None):
            raise InputError(
                f"Boost(log_odds={self.log_odds!r}, alpha={self.alpha!r}): give one of the two"
            )
        if not all(math.isfinite(n) for n in (self.log_odds, self.alpha) if n is not None):
            raise InputError(
                f"Boost(log_odds={self.log_odds!r}, alpha={self.alpha!r}): give a finite number; "
                "Knockout hides keys"
            )
        check_visual("a boost", prompt)
        if self.image is not None:
            which_image("a boost", prompt, self.image)
        select_heads(self.layers, self.heads, layers, heads)

    def bias(self, scores: torch.Tensor) -> torch.Tensor | float:
        """See ``Edit``."""
        if self.log_odds is not None:
            return self.log_odds
        assert self.alpha is not None
        return self.alpha * scores.abs()
