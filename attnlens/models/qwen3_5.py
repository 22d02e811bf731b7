"""Qwen3.5: one layer in four attends by softmax, and the others are left out of recordings."""

from __future__ import annotations

from typing import Any

from attnlens.models.family import Family, Shape
from attnlens.models.qwen2_5_vl import Qwen2_5_VL, small_rope
from attnlens.models.qwen3_vl import small_tower


class Qwen3_5(Qwen2_5_VL):
    """Qwen3.5 with its vision tower (https://qwen.ai/blog?id=qwen3.5)."""

    model_type = "qwen3_5"
    name = "Qwen3.5"
    bridged = False
    videos = False
    other_layers = ("none",)
    no_insertion = "most of its layers keep a state in place of keys"

    load_processor = Family.load_processor

    def small_text(self, shape: Shape) -> dict[str, Any]:
        """See ``Qwen2_5_VL``."""
        kinds = ["linear_attention", "full_attention"]
        return {
            "layer_types": [kinds[layer % 2] for layer in range(shape.layers)],
            "linear_key_head_dim": shape.head_dim // 2,
            "linear_value_head_dim": shape.head_dim // 2,
            "linear_num_key_heads": shape.key_heads,
            "linear_num_value_heads": shape.heads,
            "rope_parameters": small_rope(shape) | {"partial_rotary_factor": 1.0},
        }

    def small_tower(self, shape: Shape) -> dict[str, Any]:
        """See ``Qwen2_5_VL``."""
        return small_tower(shape)


QWEN3_5 = Qwen3_5()
