"""Rotary positions of text and images, in the order in which they stand in the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ImagePiece:
    """Visual tokens of one image, all or some.

    Attributes
    ----------
    rows, columns
        Grid of the whole image, in visual tokens.
    kept
        Indices of the visual tokens that stand in the sequence, in reading order; all when None.
    """

    rows: int
    columns: int
    kept: tuple[int, ...] | None = None


def multimodal_positions(pieces: Sequence[int | ImagePiece]) -> np.ndarray:
    """Positions in time, height and width of every token.

    Text counts on by one in all three. A visual token stands at (start, start + row,
    start + column), and what follows its image continues at start + max(rows, columns), whether
    or not all of the image's tokens are there: a token that was chosen keeps its place in the grid.
    This is the rule of Qwen2-VL (arXiv 2409.12191, section 2.1) for pictures.

    Parameters
    ----------
    pieces
        Number of text tokens, or an image, in the order of the sequence.

    Returns
    -------
    ndarray of int64, [3, length]
        Time, height, width.
    """
    import numpy as np

    start, parts = 0, []
    for piece in pieces:
        if isinstance(piece, int):
            parts.append(np.broadcast_to(np.arange(start, start + piece), (3, piece)))
            start += piece
        else:
            count = piece.rows * piece.columns
            kept = np.arange(count) if piece.kept is None else np.array(piece.kept, dtype=np.int64)
            rows, columns = np.divmod(kept, piece.columns)
            parts.append(start + np.stack([np.zeros_like(kept), rows, columns]))
            start += max(piece.rows, piece.columns)
    return np.concatenate(parts, axis=1, dtype=np.int64) if parts else np.zeros((3, 0), np.int64)
