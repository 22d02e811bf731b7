"""LLaVA-1.5: one square grid of visual tokens, whatever the shape of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnlens.errors import InputError
from attnlens.models.family import SMALL_TOWER, Family, Inputs, Shape, Small, square
from attnlens.models.images import Tile


class Llava(Family):
    """LLaVA-1.5 (arXiv 2310.03744)."""

    model_type = "llava"
    name = "LLaVA-1.5"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        crop = {"height": 28, "width": 28}
        return Small(
            tokens={"image_token": "<image>"},
            picture="<image>\n",
            images=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop),
            config={
                "text_config": {"model_type": "llama"},
                "vision_config": small_clip("clip_vision_model"),
                "image_token_index": "<image>",
            },
            processor={
                "patch_size": 7,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        )

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        if "image_sizes" in inputs or config.vision_config.model_type == "pixtral":
            raise InputError("a Pixtral that comes as a LLaVA has not been verified: use another")
        if not sizes:
            return []
        count = int((inputs["input_ids"] == config.image_token_id).sum())
        grid, images = square(count // len(sizes)), processor.image_processor
        size = dict(images.size or {}) if images.do_resize else {}
        crop = dict(images.crop_size or {}) if getattr(images, "do_center_crop", False) else {}
        pad = bool(getattr(images, "do_pad", False))
        return [
            (Tile(grid.rows, grid.columns, seen_box(*one, pad=pad, size=size, crop=crop)),)
            for one in sizes
        ]


def small_clip(model_type: str, image_size: int = 28) -> dict[str, Any]:
    """Configure a small vision tower of CLIP's kind, CLIP's or SigLIP's, without its head."""
    return SMALL_TOWER | {
        "model_type": model_type,
        "image_size": image_size,
        "vision_use_head": False,
    }


def seen_box(
    height: int,
    width: int,
    *,
    pad: bool = False,
    size: Mapping[str, int] | None = None,
    crop: Mapping[str, int] | None = None,
) -> tuple[float, float, float, float]:
    """Find what a square grid shows of a picture: left, top, right, bottom, as fractions.

    Parameters
    ----------
    height, width
        Of the picture.
    pad
        Whether it is first padded to a square, the picture in its middle.
    size
        What it is then resized to: ``shortest_edge``, or ``height`` and ``width``.
    crop
        What is then cut out of its middle: ``height`` and ``width``.
    """
    side = max(height, width)
    rows, columns = (side, side) if pad else (height, width)
    top, left = ((side - height) // 2, (side - width) // 2) if pad else (0, 0)
    resized = (float(rows), float(columns))
    if size and "shortest_edge" in size:
        scale = size["shortest_edge"] / min(rows, columns)
        resized = (rows * scale, columns * scale)
    elif size and "height" in size:
        resized = (size["height"], size["width"])
    seen = (crop["height"], crop["width"]) if crop else resized
    # the window that is cut out, in pixels of the padded picture
    high, wide = seen[0] * rows / resized[0], seen[1] * columns / resized[1]
    y, x = (rows - high) / 2 - top, (columns - wide) / 2 - left
    return x / width, y / height, (x + wide) / width, (y + high) / height


LLAVA = Llava()
