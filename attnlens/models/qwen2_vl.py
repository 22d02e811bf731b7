"""Qwen2-VL: what it does with pictures is what Qwen2.5-VL does, with an older vision tower."""

from __future__ import annotations

from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen2_VL(Qwen2_5_VL):
    """Qwen2-VL (arXiv 2409.12191)."""

    model_type = "qwen2_vl"
    name = "Qwen2-VL"


QWEN2_VL = Qwen2_VL()
