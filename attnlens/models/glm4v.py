"""GLM-4V (GLM-4.1V-Thinking): positions in time, height and width, as in Qwen2-VL."""

from __future__ import annotations

from typing import Any

from attnlens.models.family import Family, Shape, Small, SpecialTokens
from attnlens.models.qwen2_5_vl import Qwen2_5_VL, small_rope


class GLM4V(Qwen2_5_VL):
    """GLM-4.1V-Thinking (arXiv 2507.01006)."""

    model_type = "glm4v"
    name = "GLM-4V"
    bridged = False
    videos = False

    load_processor = Family.load_processor

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

        tokens = {
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "image_start_token": "<|begin_of_image|>",
            "image_end_token": "<|end_of_image|>",
            "video_start_token": "<|begin_of_video|>",
            "video_end_token": "<|end_of_video|>",
        }
        ids = {f"{name}_id": token for name, token in tokens.items()}
        return Small(
            tokens=tokens,
            picture="<|begin_of_image|><|image|><|end_of_image|>",
            video="<|begin_of_video|><|video|><|end_of_video|>",
            images=Glm4vImageProcessorPil(
                size={"shortest_edge": 2 * 16 * 28**2, "longest_edge": 2 * 36 * 28**2}
            ),
            config={
                "text_config": {
                    "rope_parameters": small_rope(shape) | {"partial_rotary_factor": 1.0}
                },
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 32,
                    "num_heads": 2,
                    "intermediate_size": 48,
                    "out_hidden_size": shape.width,
                    "image_size": 112,
                },
                **ids,
            },
        )

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
