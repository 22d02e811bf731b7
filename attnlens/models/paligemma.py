"""PaliGemma: one square grid, and a prompt without a chat layout, which attends both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnlens.errors import InputError
from attnlens.models.family import Family, Inputs, PixelLimits, Shape, Small, square
from attnlens.models.images import Tile
from attnlens.models.llava import small_clip
from attnlens.models.modes import DEFAULT_SYSTEM

if TYPE_CHECKING:
    from PIL import Image

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<image>{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
"""
"""Images and the user's text, as the model was trained; it knows no system text."""


class PaliGemma(Family):
    """PaliGemma (arXiv 2407.07726)."""

    model_type = "paligemma"
    name = "PaliGemma"
    both_ways = True
    no_insertion = "its prompt attends both ways, and what is inserted later would not"

    def load_processor(self, folder: str | Path, **hub: Any) -> Any:
        """See ``Family``; checkpoints have no chat template."""
        processor = super().load_processor(folder, **hub)
        processor.chat_template = processor.chat_template or TEMPLATE
        return processor

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        sizes = {"projection_dim": shape.width, "num_image_tokens": 16}
        return Small(
            tokens={"image_token": "<image>"},
            picture="<image>",
            images=SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=16),
            config={
                "text_config": {"model_type": "gemma"},
                "vision_config": small_clip("siglip_vision_model") | sizes,
                "projection_dim": shape.width,
                "image_token_index": "<image>",
            },
        )

    def write(self, processor: Any, messages: list[dict[str, Any]]) -> str:
        """See ``Family``.

        Raises
        ------
        InputError
            If there is a system text or an answer, for which the model has no place.
        """
        if processor.chat_template == TEMPLATE:
            for message in messages:
                content = message["content"]
                texts = [content] if isinstance(content, str) else [p.get("text") for p in content]
                if message["role"] != "user" and texts != [DEFAULT_SYSTEM]:
                    raise InputError(
                        f"{self.name} has no place for {message['role']} text: put it into the "
                        "question"
                    )
        return super().write(processor, messages)

    def encode(
        self, processor: Any, text: str, pictures: Sequence[Image.Image], limits: PixelLimits | None
    ) -> Inputs:
        """See ``Family``; the stock processor refuses a prompt without an image."""
        if pictures:
            return super().encode(processor, text, pictures, limits)
        tokenizer = processor.tokenizer
        written = f"{tokenizer.bos_token}{text}\n"
        encoded = tokenizer([written], add_special_tokens=False, return_tensors="pt")
        ids = encoded["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "token_type_ids": torch.zeros_like(ids),
        }

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        if not sizes:
            return []
        count = int((inputs["input_ids"] == config.image_token_id).sum())
        return [(square(count // len(sizes)),)] * len(sizes)


PALIGEMMA = PaliGemma()
