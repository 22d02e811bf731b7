"""LLaVA-OneVision: as LLaVA-NeXT, with a limit on tiles; of several images, the overviews alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.family import Family, Inputs, PixelLimits, Shape, Small
from attnlens.models.images import Tile
from attnlens.models.llava import seen_box, small_clip
from attnlens.models.llava_next import PINPOINTS, fine_grid, overview

if TYPE_CHECKING:
    from PIL import Image

NEWLINE = Tile(1, 0, newlines=True)
"""A token after an image, which shows nothing."""


class LlavaOnevision(Family):
    """LLaVA-OneVision (arXiv 2408.03326)."""

    model_type = "llava_onevision"
    name = "LLaVA-OneVision"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        return Small(
            tokens={"image_token": "<image>", "video_token": "<video>"},
            picture="<image>\n",
            video="<video>\n",
            images=LlavaOnevisionImageProcessorPil(
                size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
            ),
            config={
                "text_config": {"model_type": "qwen2"},
                "vision_config": small_clip("siglip_vision_model"),
                "image_token_id": "<image>",
                "video_token_id": "<video>",
                "image_grid_pinpoints": PINPOINTS,
            },
            processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        )

    def encode(
        self, processor: Any, text: str, pictures: Sequence[Image.Image], limits: PixelLimits | None
    ) -> Inputs:
        """See ``Family``; images of one prompt are one list, and then not cut into tiles."""
        images = [list(pictures)] if pictures else None
        encoded = processor(text=[text], images=images, return_tensors="pt", padding=False)
        return dict(encoded)

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        if len(sizes) > 1:
            grid = overview(config)
            padded = (Tile(grid.rows, grid.columns, seen_box(*size, pad=True)) for size in sizes)
            return [(tile, NEWLINE) for tile in padded]
        most = config.vision_aspect_ratio.removeprefix("anyres_max_")
        if not most.isdecimal():
            raise InputError(
                f"vision_aspect_ratio={config.vision_aspect_ratio!r}: {self.name} is read with "
                "anyres_max_N, such as anyres_max_9"
            )
        found = inputs.get("image_sizes")
        resized = [] if found is None else found.tolist()
        return [(overview(config), fine_grid(config, h, w, int(most))) for h, w in resized]


LLAVA_ONEVISION = LlavaOnevision()
