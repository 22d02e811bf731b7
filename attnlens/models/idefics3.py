"""Idefics 3 and SmolVLM: tiles, which tokens of text name, then the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ProcessorMixin

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
from attnlens.models.internvl import cut


class Idefics3(Family):
    """Idefics 3 (arXiv 2408.12637)."""

    model_type = "idefics3"
    name = "Idefics 3"

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil,
        )

        rows = {f"row_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)}
        return Small(
            tokens={
                "image_token": "<image>",
                "fake_image_token": "<fake_token_around_image>",
                "global_image_token": "<global-img>",
                "end_of_utterance_token": "<end_of_utterance>",
                **rows,
            },
            picture="<image>",
            images=Idefics3ImageProcessorPil(
                size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
            ),
            config={
                "text_config": {"model_type": "llama"},
                "vision_config": SMALL_TOWER | {"image_size": 56},
                "scale_factor": 2,
                "image_token_id": "<image>",
            },
            processor={"image_seq_len": 16},
        )

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        around, whole = tokenizer.convert_tokens_to_ids(
            ["<fake_token_around_image>", "<global-img>"]
        )
        image = config.image_token_id
        return SpecialTokens(image, (image,), (around, whole), (around,))

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        grid = square(processor.image_seq_len)
        found = []
        for height, width in sizes:
            _, rows, columns = processor.image_processor.get_number_of_image_patches(height, width)
            found.append((*cut(grid, rows, columns), grid))
        return found

    def join_images(self, rows: Sequence[Inputs], *, same_sequence: bool = False) -> Inputs:
        """See ``Family``; images of one sequence are side by side."""
        if not same_sequence:
            return super().join_images(rows)
        turned = [
            {name: v.transpose(0, 1) for name, v in row.items() if name.startswith("pixel_")}
            for row in rows
        ]
        joined: dict[str, torch.Tensor] = super().join_images(turned)
        return {name: values.transpose(0, 1) for name, values in joined.items()}


class SmolVLM(Idefics3):
    """SmolVLM (arXiv 2504.05299)."""

    model_type = "smolvlm"
    name = "SmolVLM"

    def write(self, processor: Any, messages: list[dict[str, Any]]) -> str:
        """See ``Family``; the stock processor's own way asks its video processor first."""
        return ProcessorMixin.apply_chat_template(
            processor, messages, tokenize=False, add_generation_prompt=True
        )


IDEFICS3 = Idefics3()
SMOLVLM = SmolVLM()
