"""Mistral 3: grids of any shape, with a token of text at the end of each row.

Its stock processor, Pixtral's, needs torchvision. ``ImageTextProcessor`` reads the same folders,
and needs only Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin

from attnlens.models.family import SMALL_TOWER, Family, Inputs, Shape, Small, SpecialTokens
from attnlens.models.images import Tile

ROW_END, IMAGE_END = "[IMG_BREAK]", "[IMG_END]"


class ImageTextProcessor(ProcessorMixin):
    """Tokenizer and image processor of Pixtral.

    Parameters
    ----------
    image_processor
        A Pixtral image processor.
    tokenizer
        The tokenizer, with ``[IMG]``, ``[IMG_BREAK]`` and ``[IMG_END]`` in its vocabulary.
    patch_size, spatial_merge_size
        Pixels of a patch, and patches of a visual token, each way.
    chat_template
        Jinja template of the chat layout.
    image_token
        The placeholder of a visual token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    @property
    def pixels(self) -> int:
        """Pixels of a visual token, each way."""
        return self.patch_size * self.spatial_merge_size

    def _process_images(self, images: Any, **options: Any) -> Any:
        return super()._process_images(images, **options | {"patch_size": self.pixels})

    def replace_image_token(self, image_inputs: dict, image_idx: int, **_: Any) -> str:
        """Repeat the placeholder of one image for each of its visual tokens, row by row."""
        height, width = (int(size) for size in image_inputs["image_sizes"][image_idx])
        row = self.image_token * (width // self.pixels)
        return ROW_END.join([row] * (height // self.pixels)) + IMAGE_END


class Mistral3(Family):
    """Mistral Small 3.1, with the vision tower of Pixtral (arXiv 2410.07073)."""

    model_type = "mistral3"
    name = "Mistral 3"

    def plain_processor_class(self) -> Any:
        """See ``Family``."""
        return ImageTextProcessor

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.pixtral.image_processing_pil_pixtral import (
            PixtralImageProcessorPil,
        )

        return Small(
            tokens={"image_token": "[IMG]", "image_break": ROW_END, "image_end": IMAGE_END},
            picture="[IMG]",
            images=PixtralImageProcessorPil(
                size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
            ),
            config={
                "text_config": {"model_type": "mistral", "sliding_window": None},
                "vision_config": SMALL_TOWER
                | {"model_type": "pixtral", "image_size": 112, "patch_size": 14},
                "image_token_index": "[IMG]",
                "spatial_merge_size": 2,
            },
            processor={"patch_size": 14, "spatial_merge_size": 2},
        )

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        end = tokenizer.convert_tokens_to_ids(IMAGE_END)
        return SpecialTokens(config.image_token_id, (config.image_token_id,), end=(end,))

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        pixels = config.vision_config.patch_size * config.spatial_merge_size
        found = inputs.get("image_sizes")
        resized = [] if found is None else found.tolist()
        return [(Tile(height // pixels, width // pixels),) for height, width in resized]


MISTRAL3 = Mistral3()
