"""InternVL: tiles in the picture's shape, then a thumbnail of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.models.family import (
    SMALL_TOWER,
    Family,
    Inputs,
    Shape,
    Small,
    SpecialTokens,
    square,
)
from attnlens.models.images import Tile


class InternVL(Family):
    """InternVL 3 (arXiv 2504.10479) and 3.5 (arXiv 2508.18265)."""

    model_type = "internvl"
    name = "InternVL"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            GotOcr2ImageProcessorPil,
        )

        return Small(
            tokens={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
            picture="<IMG_CONTEXT>\n",
            video="<video>\n",
            images=GotOcr2ImageProcessorPil(
                size={"height": 56, "width": 56}, min_patches=1, max_patches=4
            ),
            config={
                "text_config": {"model_type": "qwen2"},
                "vision_config": SMALL_TOWER | {"image_size": [56, 56], "patch_size": [7, 7]},
                "image_token_id": "<IMG_CONTEXT>",
            },
            processor={"image_seq_length": 16},
        )

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        start, end = tokenizer.convert_tokens_to_ids(["<img>", "</img>"])
        return SpecialTokens(config.image_token_id, (config.image_token_id,), (start,), (end,))

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            get_optimal_tiled_canvas,
        )

        images = processor.image_processor
        grid = square(processor.image_seq_length)
        found = []
        for size in sizes:
            # the stock processor asks for tiles whatever the image processor's setting
            tile = (images.size["height"], images.size["width"])
            limits = (images.min_patches, images.max_patches)
            columns, rows = get_optimal_tiled_canvas(size, tile, *limits)
            found.append((*cut(grid, rows, columns), *([grid] if rows * columns > 1 else [])))
        return found


def cut(grid: Tile, rows: int, columns: int) -> list[Tile]:
    """Return the grids of a picture that is cut into tiles, in reading order."""
    return [
        Tile(
            grid.rows,
            grid.columns,
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows),
        )
        for row in range(rows)
        for column in range(columns)
    ]


INTERNVL = InternVL()
