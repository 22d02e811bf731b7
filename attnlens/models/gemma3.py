"""Gemma 3: layers that attend to a window, and pictures whose tokens attend both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.models.family import Family, Inputs, Shape, Small, SpecialTokens, square
from attnlens.models.images import Tile
from attnlens.models.llava import small_clip


class Gemma3(Family):
    """Gemma 3 (arXiv 2503.19786)."""

    model_type = "gemma3"
    name = "Gemma 3"
    both_ways = True
    other_layers = ("window",)
    no_insertion = "most of its layers attend to a window"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        kinds = ["sliding_attention", "full_attention"]
        return Small(
            tokens={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
            picture="<start_of_image>",
            images=Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
            config={
                "text_config": {
                    # the windows of published models are 0.3 to 0.4 of their widths
                    "sliding_window": 3 * shape.width // 8,
                    "layer_types": [kinds[layer % 2] for layer in range(shape.layers)],
                    "query_pre_attn_scalar": shape.head_dim,
                },
                "vision_config": small_clip("siglip_vision_model", 56),
                "mm_tokens_per_image": 16,
                "boi_token_index": "<start_of_image>",
                "eoi_token_index": "<end_of_image>",
                "image_token_index": "<image_soft_token>",
            },
            processor={"image_seq_length": 16},
        )

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        image = config.image_token_id
        return SpecialTokens(image, (image,), (config.boi_token_index,), (config.eoi_token_index,))

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``; crops of the picture besides ("pan and scan") are not known."""
        return [(square(config.mm_tokens_per_image),)] * len(sizes)


GEMMA3 = Gemma3()
