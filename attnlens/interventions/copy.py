"""Visual Token COPY: an image's visual tokens are inserted again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.interventions.base import TokenInsertion, Words, which_image
from attnlens.interventions.pieces import (
    POSITIONS,
    CachedPiece,
    Piece,
    PromptImages,
    TextPiece,
    VisualPiece,
)
from attnlens.interventions.triggers import Trigger
from attnlens.models.images import open_image, plain_picture
from attnlens.text import shortened

if TYPE_CHECKING:
    from attnlens.interventions.base import Generation
    from attnlens.models.prompt import Prompt


LONGEST_SOURCE = 500
"""Longest path in the name of a copy, in characters: a picture may be given as a ``data:`` URL."""


@dataclass(frozen=True)
class Copy(TokenInsertion):
    """Insert all visual tokens of an image again, before the trigger.

    Visual Token COPY of Qwen-LookAgain (arXiv 2505.23558, section 3.3).

    Parameters
    ----------
    when
        The trigger.
    image
        Which image of the prompt, counted from 0; needed where there are several.
    source
        What is inserted: None, the image itself; ``"blank"``, a plain picture of its size in its
        mean colour; ``"text"``, as many tokens of plain text (the question's, over and over); or
        another image (a path or a ``PIL.Image``), with as many tokens as its own size gives. All
        but the first are controls.
    positions
        ``fresh``, ``original`` or ``frozen-cache``; see ``attnlens.interventions.POSITIONS``.
    wrap
        Whether vision-start and vision-end tokens are put around the image, as in a prompt.
    repeat
        How many copies, one after the other.

    Notes
    -----
    ``Knockout`` and ``Boost`` reach the prompt's visual keys, never the inserted ones: joined with
    a knock-out, the response looks at the copy alone. Rows of inserted tokens are in reach of an
    edit that began before them, or at the same moment but earlier in the sum.
    """

    inserts_visual = True
    when: Trigger
    image: int | None = None
    source: Any = None
    positions: str = "fresh"
    wrap: bool = True
    repeat: int = 1

    forms: ClassVar[tuple[str, ...]] = ("copy", "copy:blank", "copy:text", "copy:FILE")

    @classmethod
    def from_words(cls, words: Words) -> Copy | None:
        """See ``Intervention``."""
        if words.name != "copy":
            return None
        source = words.value or None
        return cls(words.when, source=source, positions="fresh" if source else words.positions)

    @classmethod
    def takes_whole(cls, text: str) -> bool:
        """See ``Intervention``."""
        return text.startswith("copy:") and Path(text.removeprefix("copy:")).is_file()

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        if self.source is None:
            return "copy"
        if not isinstance(self.source, str | PathLike):
            return "copy:other"
        return f"copy:{shortened(str(self.source), LONGEST_SOURCE)}"

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        super().check(prompt, layers, heads)
        which_image(self.name, prompt, self.image)
        if prompt.has_video:
            raise InputError(
                f"{self.name} inserts visual tokens of images, which has not been verified in a "
                "prompt with a video: give one with images alone"
            )
        if self.positions not in POSITIONS:
            raise InputError(
                f"unknown positions {self.positions!r}: use one of {', '.join(POSITIONS)}"
            )
        if self.source is not None and self.positions != "fresh":
            raise InputError(
                f"{self.name} with positions={self.positions!r}: only the prompt's own image has "
                "a place in the prompt; use 'fresh'"
            )
        if not isinstance(self.repeat, int) or self.repeat < 1:
            raise InputError(f"repeat={self.repeat!r}: give a whole number of at least 1")
        if self.source == "text" and not prompt.question:
            raise InputError(
                f"{self.name}: the last message has no text to insert; give another source"
            )
        if self.source not in (None, "blank", "text"):
            open_image(self.source)

    def chosen(self, generation: Generation, step: int, image: int) -> tuple[int, ...]:
        """Which visual tokens of the image are inserted before a step."""
        rows, columns = generation.prompt.grids[image]
        return tuple(range(rows * columns))

    def kept_of(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """See ``TokenInsertion``."""
        if self.source is not None:
            return ()
        return next((p.kept for p in pieces if isinstance(p, VisualPiece | CachedPiece)), ())

    def pieces(self, generation: Generation, step: int) -> list[Piece]:
        """See ``TokenInsertion``."""
        image = which_image(self.name, generation.prompt, self.image)
        kept = self.chosen(generation, step, image)
        if not kept:
            return []
        inner = self._inner(generation, image, kept)
        if self.wrap and self.source != "text":
            vlm = generation.vlm
            special = vlm.special_tokens
            wrapped = [TextPiece(special.start), inner, TextPiece(special.end)]
            return [piece for piece in wrapped if piece.count] * self.repeat
        return [inner] * self.repeat

    def _inner(self, generation: Generation, image: int, kept: tuple[int, ...]) -> Piece:
        if self.source == "text":
            ids = generation.vlm.tokenizer(generation.prompt.question, add_special_tokens=False)
            vlm = generation.vlm
            special = vlm.special_tokens
            around = (len(special.start) + len(special.end)) * self.wrap
            count = len(kept) + around  # as many tokens as the image with its wrapping
            return TextPiece(tuple(np.resize(ids["input_ids"], count).tolist()))
        if self.source is not None:
            features, grid = generation.once(
                (id(self), image), lambda: self._foreign(generation, image)
            )
            return VisualPiece(features, grid, tuple(range(len(features))))
        if self.positions == "frozen-cache":
            slots = generation.images.slots(image)
            return CachedPiece(tuple(slots[i] for i in kept), kept)
        images = generation.images
        original = images.positions(image) if self.positions == "original" else None
        return VisualPiece(images.features(image), generation.prompt.grids[image], kept, original)

    def _foreign(self, generation: Generation, image: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Vision features and grid of a picture that the prompt does not hold."""
        shown: Any = self.source
        if shown == "blank":
            shown = plain_picture(generation.prompt.pictures[image])
        least, most = generation.prompt.limits
        # only the pictures matter; some families encode one of several in another way
        vlm = generation.vlm
        pictures: list[Any] = list(generation.prompt.pictures)
        pictures[image] = shown
        prompt = vlm.prompt(pictures, "?", min_pixels=least, max_pixels=most)
        features = PromptImages(vlm, generation.parts, prompt).features(image)
        return features, prompt.grids[image]
