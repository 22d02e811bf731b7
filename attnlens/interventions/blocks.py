"""What an insertion puts into the cache: pieces, their rotary positions, and the pass over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.models.family import Family, ImagePiece

POSITIONS = ("fresh", "original", "frozen-cache")
"""Where inserted visual tokens stand: as a new image at the current position; at the positions
that they have in the prompt; or as the cached keys and values, repeated as they are."""


@dataclass(frozen=True)
class TextPiece:
    """Text tokens that are inserted: the tokens that wrap an image, or a control.

    Attributes
    ----------
    ids
        Token ids.
    """

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
    """Rotary positions of a piece.

    Parameters
    ----------
    family
        The model's family, whose rule it is.
    piece
        The piece.
    start
        Position of the next token.

    Returns
    -------
    int64 [axes, tokens] and int
        The positions, and the position of what follows. Cached keys keep those they have.
    """
    if isinstance(piece, TextPiece):
        return family.positions_from(start, [piece.count])
    if isinstance(piece, VisualPiece) and piece.original is not None:
        return piece.original[:, list(piece.kept)], start
    if isinstance(piece, VisualPiece):
        return family.positions_from(start, [ImagePiece(*piece.grid, piece.kept)])
    return family.positions_from(start, [])


def step_back(cache: Any, tokens: int) -> None:
    """Take the last tokens out of a cache.

    Raises
    ------
    InputError
        If the cache is neither dynamic nor static.
    """
    if not tokens:
        return
    for layer in cache.layers:
        length = getattr(layer, "cumulative_length", None)
        if isinstance(length, torch.Tensor):  # a static layer: what lies beyond is written over
            length.sub_(tokens)
        elif type(layer).__name__ == "DynamicLayer":
            layer.crop(-tokens)
        else:
            raise InputError(
                f"a cache of {type(layer).__name__} cannot be stepped back: "
                "use a dynamic or a static cache"
            )


def repeat_cached(cache: Any, slots: tuple[int, ...]) -> None:
    """Append copies of cached keys and values to a cache."""
    at = list(slots)
    for layer in cache.layers:
        layer.update(layer.keys[:, :, at].clone(), layer.values[:, :, at].clone())
