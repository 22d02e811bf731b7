"""Qwen3-VL and its mixture of experts: features of an image enter several layers."""

from __future__ import annotations

from typing import Any

import torch

from attnlens.models.family import Family, Inputs
from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen3_VL(Qwen2_5_VL):
    """Qwen3-VL (arXiv 2511.21631)."""

    model_type = "qwen3_vl"
    name = "Qwen3-VL"
    bridged = False

    load_processor = Family.load_processor

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


QWEN3_VL = Qwen3_VL()
QWEN3_VL_MOE = Qwen3_VL_MoE()
