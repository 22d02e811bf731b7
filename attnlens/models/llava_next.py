"""LLaVA-NeXT: the whole picture in one square grid, then its tiles in one fine grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attnlens.models.family import Family, Inputs, Shape, Small
from attnlens.models.images import Tile
from attnlens.models.llava import LLAVA

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
"""Sizes that pictures of a small model are cut from."""


class LlavaNext(Family):
    """LLaVA-NeXT, also LLaVA-1.6 (https://llava-vl.github.io/blog/2024-01-30-llava-next)."""

    model_type = "llava_next"
    name = "LLaVA-NeXT"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil,
        )

        base = LLAVA.small(shape)
        images = LlavaNextImageProcessorPil(
            size=base.images.size, crop_size=base.images.crop_size, image_grid_pinpoints=PINPOINTS
        )
        text = {"text_config": {"model_type": "mistral", "sliding_window": None}}
        config = base.config | text | {"image_grid_pinpoints": PINPOINTS}
        return replace(base, images=images, config=config)

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        found = inputs.get("image_sizes")
        resized = [] if found is None else found.tolist()
        return [(overview(config), fine_grid(config, h, w)) for h, w in resized]


def overview(config: Any) -> Tile:
    """Return the grid of the whole picture."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return Tile(side, side)


def fine_grid(config: Any, height: int, width: int, most: float = float("inf")) -> Tile:
    """Return the grid of the tiles together, without what was padded; each row ends in a token.

    ``most`` is the largest number of tiles; a larger grid is made smaller.
    """
    from transformers.image_processing_utils import select_best_resolution

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    best = select_best_resolution([height, width], config.image_grid_pinpoints)
    rows, columns = (size // vision.image_size * side for size in best)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    ratio = (rows * columns / (most * side**2)) ** 0.5
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return Tile(rows, columns, newlines=True)


LLAVA_NEXT = LlavaNext()
