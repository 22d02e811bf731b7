"""Qwen3-VL and its mixture of experts: features of an image enter several layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from attnlens.models.family import Family, Inputs, Shape
from attnlens.models.images import Frames
from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen3_VL(Qwen2_5_VL):
    """Qwen3-VL (arXiv 2511.21631)."""

    model_type = "qwen3_vl"
    name = "Qwen3-VL"
    bridged = False

    load_processor = Family.load_processor

    def unwrapped(self, processor: Any, text: str) -> str:
        """See ``Qwen2_5_VL``; each pair of frames is wrapped by itself, and the video is not.

        So do Qwen3-VL's release and vLLM; transformers 5 keeps the template's wrapping around all.
        """
        start, end = processor.vision_start_token, processor.vision_end_token
        video = processor.video_token
        return text.replace(f"{start}{video}{end}", video)

    def video_text(self, processor: Any, pairs: int, tokens: int, frames: Frames) -> str:
        """See ``Qwen2_5_VL``; before each pair of frames comes its time, the mean of both."""
        visual = f"{processor.vision_start_token}{processor.video_token * tokens}"
        return "".join(
            f"<{t:.1f} seconds>{visual}{processor.vision_end_token}" for t in frames.middles()
        )

    def video_times(self, seconds: Sequence[float]) -> Inputs:
        """See ``Qwen2_5_VL``; the text says it."""
        return {}

    def small_tower(self, shape: Shape) -> dict[str, Any]:
        """See ``Qwen2_5_VL``."""
        return small_tower(shape) | {"deepstack_visual_indexes": [0, 1]}

    def image_features(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """See ``Family``; DeepStack's features of the early layers follow those of the input."""
        found = model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
        layers = [found.pooler_output, *found.deepstack_features]
        return torch.cat([torch.cat(tuple(images)) for images in layers], dim=-1)

    def features_in(self, output: Any) -> torch.Tensor | None:
        """See ``Family``."""
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def further_features(self, visual: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """See ``Family``."""
        return {
            "visual_pos_masks": visual,
            "deepstack_visual_embeds": list(features.unbind(dim=1)),
        }


class Qwen3_VL_MoE(Qwen3_VL):
    """Qwen3-VL as a mixture of experts."""

    model_type = "qwen3_vl_moe"
    name = "Qwen3-VL-MoE"

    def small_text(self, shape: Shape) -> dict[str, Any]:
        """See ``Qwen2_5_VL``."""
        return {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": shape.mlp // 3,
            "decoder_sparse_step": 1,
        }


def small_tower(shape: Shape) -> dict[str, Any]:
    """Configure the vision tower of a small model."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": shape.width,
        "num_position_embeddings": 64,
    }


QWEN3_VL = Qwen3_VL()
QWEN3_VL_MOE = Qwen3_VL_MoE()
