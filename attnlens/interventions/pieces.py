"""What an insertion puts into the cache, and the images of the prompt that it comes from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from attnlens.models.family import Family, ImagePiece, Parts
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt

POSITIONS = ("fresh", "original", "frozen-cache")
"""Where inserted visual tokens stand: as a new image at the current position; at the positions
that they have in the prompt; or as the cached keys and values, repeated as they are."""


@dataclass(frozen=True)
class TextPiece:
    """Text tokens: inserted ones that wrap an image, a control, or response tokens fed again."""

    ids: tuple[int, ...]

    segment = "response"

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class VisualPiece:
    """Visual tokens that are inserted.

    Attributes
    ----------
    features
        [tokens of the whole image, width]: output of the vision tower.
    grid
        (rows, columns) of the whole image, in visual tokens.
    kept
        Indices of those that are inserted, in reading order.
    original
        int64 [axes, tokens of the whole image]: their rotary positions in the prompt, where they
        are inserted at these; None for a new image at the current position.
    """

    features: torch.Tensor
    grid: tuple[int, int]
    kept: tuple[int, ...]
    original: np.ndarray | None = None

    segment = "copied"

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(self.kept)


@dataclass(frozen=True)
class CachedPiece:
    """Cached keys and values that are repeated as they are.

    Attributes
    ----------
    slots
        Slots of the keys that are repeated, in order.
    kept
        Which visual tokens of the image they are, in reading order.
    """

    slots: tuple[int, ...]
    kept: tuple[int, ...]

    segment = "copied"

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(self.slots)


Piece = TextPiece | VisualPiece | CachedPiece


def piece_positions(family: Family, piece: Piece, start: int) -> tuple[np.ndarray, int]:
    """Rotary positions of a piece at ``start``, int64 [axes, tokens], and that of what follows.

    Cached keys keep the positions they have.
    """
    if isinstance(piece, TextPiece):
        return family.positions_from(start, [piece.count])
    if isinstance(piece, VisualPiece) and piece.original is not None:
        return piece.original[:, list(piece.kept)], start
    if isinstance(piece, VisualPiece):
        return family.positions_from(start, [ImagePiece(*piece.grid, piece.kept)])
    return family.positions_from(start, [])


class PromptImages:
    """Features, slots and positions of the visual tokens of a prompt's images."""

    def __init__(self, vlm: VLM, parts: Parts, prompt: Prompt) -> None:
        self._vlm = vlm
        self._parts = parts
        self._prompt = prompt
        self._features: torch.Tensor | None = None

    def keep(self, features: torch.Tensor) -> None:
        """Keep the vision features that the generation has computed, of all images in a row."""
        if self._features is None:
            self._features = features

    def clear(self) -> None:
        """Drop the features."""
        self._features = None

    def features(self, image: int) -> torch.Tensor:
        """Vision features of an image, [visual tokens, width]; computed once."""
        if self._features is None:
            vlm = self._vlm
            with torch.no_grad():
                self._features = vlm.family.image_features(vlm.model, self._prompt.inputs)
        counts = [rows * columns for rows, columns in self._prompt.grids]
        start = sum(counts[:image])
        return self._features[start : start + counts[image]]

    def slots(self, image: int) -> list[int]:
        """Slots of an image's visual keys in the prompt."""
        return np.flatnonzero(self._prompt.image_of_key == image).tolist()

    def positions(self, image: int) -> np.ndarray:
        """Rotary positions of an image's visual tokens in the prompt, int64 [axes, tokens]."""
        positions = self._vlm.family.rotary_positions(self._parts.generator, self._prompt.inputs)
        return positions[:, 0, self.slots(image)].cpu().numpy()

    def checksum(self) -> int:
        """Return a number that depends on the question and on every pixel."""
        pixels = self._vlm.family.pixels(self._prompt.inputs).float().cpu().numpy().tobytes()
        return zlib.crc32(self._prompt.text.encode(), zlib.crc32(pixels))
