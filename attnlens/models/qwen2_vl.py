"""Qwen2-VL: what it does with pictures is what Qwen2.5-VL does, with an older vision tower."""

from __future__ import annotations

from typing import Any

from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class Qwen2_VL(Qwen2_5_VL):
    """Qwen2-VL (arXiv 2409.12191)."""

    model_type = "qwen2_vl"
    name = "Qwen2-VL"

    def model_class(self) -> Any:
        """See ``Family``."""
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration

    def processor_class(self) -> Any:
        """See ``Qwen2_5_VL``."""
        from transformers import Qwen2VLProcessor

        return Qwen2VLProcessor


QWEN2_VL = Qwen2_VL()
