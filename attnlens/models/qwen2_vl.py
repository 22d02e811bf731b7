"""Qwen2-VL: what it does with pictures is what Qwen2.5-VL does, with an older vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.models.family import Inputs, Shape
from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen2_VL(Qwen2_5_VL):
    """Qwen2-VL (arXiv 2409.12191)."""

    model_type = "qwen2_vl"
    name = "Qwen2-VL"

    def video_times(self, seconds: Sequence[float]) -> Inputs:
        """See ``Qwen2_5_VL``; one pair of frames is one position after the other here."""
        return {}

    def small_tower(self, shape: Shape) -> dict[str, Any]:
        """See ``Qwen2_5_VL``."""
        return {
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "hidden_size": shape.width,
        }


QWEN2_VL = Qwen2_VL()
