"""Gemma 3: layers that attend to a window, and pictures whose tokens attend both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.models.family import Family, Inputs, SpecialTokens, square
from attnlens.models.images import Tile


class Gemma3(Family):
    """Gemma 3 (arXiv 2503.19786)."""

    model_type = "gemma3"
    name = "Gemma 3"
    both_ways = True
    other_layers = ("window",)
    no_insertion = "most of its layers attend to a window"

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
