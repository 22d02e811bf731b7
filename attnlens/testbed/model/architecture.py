"""The testbed's model, a small real ``Qwen2_5_VLForConditionalGeneration``, and its first weights.

As in the published checkpoints: multimodal rotary positions, grouped-query attention, a windowed
vision tower. Four text layers of width 128.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

    from attnlens.models.qwen2_5_vl import ImageTextProcessor

WIDTH = 128
LAYERS = 4
HEADS = 4
KEY_HEADS = 2
VISION_WIDTH = 96
VISION_DEPTH = 2


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Build the model, with the initial weights of transformers, for a tokenizer."""
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": 4,
            "out_hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [VISION_DEPTH - 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        max_new_tokens=512,
    )
    return model


def initialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Set the first weights by fan-in, in place, with torch's global generator.

    With the usual standard deviation of 0.02, a model of this width learns colours but never
    shapes. Here it is 1 / sqrt(fan-in), for the outputs of attention and MLP blocks divided by
    sqrt(2 x blocks of the tower), and 0.08 for token embeddings; biases are 0.
    """
    import torch
    from torch import nn

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                if name == "lm_head":  # tied to the token embeddings
                    continue
                fan_in = module.weight[0].numel()
                depth = VISION_DEPTH if "visual" in name.split(".") else LAYERS
                last = name.rsplit(".", 1)[-1]
                is_output = last in ("o_proj", "down_proj") or name.endswith("attn.proj")
                scale = 1 / math.sqrt(2 * depth) if is_output else 1.0
                module.weight.normal_(0, scale / math.sqrt(fan_in))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.08)


def embed(
    model: Qwen2_5_VLForConditionalGeneration,
    ids: torch.Tensor,
    images: dict[str, torch.Tensor],
    visual_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Embed tokens, with the vision tower's features at the image tokens.

    Parameters
    ----------
    model, ids
        The model, and int64 [batch, length].
    images
        The output of the image processor, with each image once.
    visual_index
        Which feature goes to each image token of the batch, in reading order; by default one after
        the other.

    Returns
    -------
    torch.Tensor, [batch, length, width]
        The ``inputs_embeds`` of the text layers.
    """
    from attnlens.models.qwen2_5_vl import QWEN2_5_VL

    features = QWEN2_5_VL.image_features(model, images)
    if visual_index is not None:
        features = features.index_select(0, visual_index)  # its gradient adds in fixed order
    embedded = model.get_input_embeddings()(ids)
    is_image = ids == model.config.image_token_id
    return embedded.index_put((is_image,), features.to(embedded.dtype))


def build_processor(tokenizer: PreTrainedTokenizerFast) -> ImageTextProcessor:
    """Build the testbed's processor: Qwen2-VL image processing, 28 pixels per visual token.

    It resizes pictures to 36 to 144 visual tokens, the sizes that the model has seen.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    from attnlens.models.qwen2_5_vl import ImageTextProcessor
    from attnlens.testbed.world.scenes import CELL

    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 36 * CELL**2, "longest_edge": 144 * CELL**2}
    )
    return ImageTextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
