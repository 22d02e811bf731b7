"""GLM-4V (GLM-4.1V-Thinking): positions in time, height and width, as in Qwen2-VL."""

from __future__ import annotations

from typing import Any

from attnlens.models.family import Family, SpecialTokens
from attnlens.models.qwen2_5_vl import Qwen2_5_VL


class GLM4V(Qwen2_5_VL):
    """GLM-4.1V-Thinking (arXiv 2507.01006)."""

    model_type = "glm4v"
    name = "GLM-4V"
    bridged = False

    load_processor = Family.load_processor

    def area_factor(self, processor: Any) -> int:
        """See ``Qwen2_5_VL``: an image counts as a film of as many frames as a patch is long."""
        return int(processor.image_processor.temporal_patch_size)

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        return SpecialTokens(
            image=config.image_token_id,
            visual=(config.image_token_id, config.video_token_id),
            start=(config.image_start_token_id,),
            end=(config.image_end_token_id,),
        )


GLM4V_FAMILY = GLM4V()
