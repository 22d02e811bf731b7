"""Qwen3.5: one layer in four attends by softmax, and the others are left out of recordings."""

from __future__ import annotations

from attnlens.models.family import Family
from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen3_5(Qwen2_5_VL):
    """Qwen3.5 with its vision tower (https://qwen.ai/blog?id=qwen3.5)."""

    model_type = "qwen3_5"
    name = "Qwen3.5"
    bridged = False
    other_layers = ("none",)
    no_insertion = "most of its layers keep a state in place of keys"

    load_processor = Family.load_processor


QWEN3_5 = Qwen3_5()
