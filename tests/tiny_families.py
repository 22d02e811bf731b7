"""A tiny random model of each family, with the image processor and the chat layout of its kind."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedTokenizerFast,
)

from attnlens.models.families import FAMILIES
from attnlens.models.load import VLM

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}


@dataclass
class Tiny:
    """What a tiny model of a family is made of.

    ``tokens`` are the special tokens by the name that its tokenizer gives them; ``picture`` is what
    the chat template writes for an image.
    """

    picture: str
    tokens: dict[str, str]
    images: tuple[str, str, dict[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    processor: dict[str, Any] = field(default_factory=dict)


def _qwen3(text: dict[str, Any] | None = None) -> Callable[[Any], dict[str, Any]]:
    def config(token: Any) -> dict[str, Any]:
        return {
            "text_config": TEXT | {"rope_parameters": MROPE} | (text or {}),
            "vision_config": {
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "patch_size": 14,
                "out_hidden_size": 64,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
        }

    return config


QWEN_IMAGES = (
    "qwen2_vl",
    "Qwen2VLImageProcessorPil",
    {"size": {"shortest_edge": 16 * 28**2, "longest_edge": 36 * 28**2}},
)
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}

TINY: dict[str, Tiny] = {
    "qwen3_vl": Tiny(QWEN_PICTURE, QWEN_TOKENS, QWEN_IMAGES, _qwen3()),
    "qwen3_vl_moe": Tiny(QWEN_PICTURE, QWEN_TOKENS, QWEN_IMAGES, _qwen3(MOE)),
    "qwen3_5": Tiny(
        QWEN_PICTURE,
        QWEN_TOKENS,
        QWEN_IMAGES,
        _qwen3(
            {
                "num_hidden_layers": 4,
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
            }
        ),
    ),
    "glm4v": Tiny(
        "<|begin_of_image|><|image|><|end_of_image|>",
        {"image_token": "<|image|>", "video_token": "<|video|>"}
        | {n: f"<|{n}|>" for n in ("begin_of_image", "end_of_image")}
        | {n: f"<|{n}|>" for n in ("begin_of_video", "end_of_video")},
        (
            "glm4v",
            "Glm4vImageProcessorPil",
            {"size": {"shortest_edge": 16 * 28**2 * 2, "longest_edge": 36 * 28**2 * 2}},
        ),
        lambda token: {
            "text_config": TEXT | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "image_size": 112,
            },
            "image_token_id": token("<|image|>"),
            "video_token_id": token("<|video|>"),
            "image_start_token_id": token("<|begin_of_image|>"),
            "image_end_token_id": token("<|end_of_image|>"),
            "video_start_token_id": token("<|begin_of_video|>"),
            "video_end_token_id": token("<|end_of_video|>"),
        },
    ),
    "llava": Tiny(
        "<image>\n",
        {"image_token": "<image>"},
        (
            "clip",
            "CLIPImageProcessorPil",
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": CLIP,
            "image_token_index": token("<image>"),
        },
        {
            "patch_size": 7,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_next": Tiny(
        "<image>\n",
        {"image_token": "<image>"},
        (
            "llava_next",
            "LlavaNextImageProcessorPil",
            {
                "size": {"shortest_edge": 28},
                "crop_size": {"height": 28, "width": 28},
                "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
            },
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
            "vision_config": CLIP,
            "image_token_index": token("<image>"),
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
        },
        {
            "patch_size": 7,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_onevision": Tiny(
        "<image>\n",
        {"image_token": "<image>", "video_token": "<video>"},
        (
            "llava_onevision",
            "LlavaOnevisionImageProcessorPil",
            {
                "size": {"height": 28, "width": 28},
                "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
            },
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": SIGLIP,
            "image_token_id": token("<image>"),
            "video_token_id": token("<video>"),
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
        },
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "internvl": Tiny(
        "<IMG_CONTEXT>\n",
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        (
            "got_ocr2",
            "GotOcr2ImageProcessorPil",
            {
                "size": {"height": 56, "width": 56},
                "min_patches": 1,
                "max_patches": 4,
            },
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": [56, 56],
                "patch_size": [7, 7],
            },
            "image_token_id": token("<IMG_CONTEXT>"),
        },
        {"image_seq_length": 16},
    ),
    "idefics3": Tiny(
        "<image>",
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        }
        | {f"row_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)},
        (
            "idefics3",
            "Idefics3ImageProcessorPil",
            {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 7,
            },
            "scale_factor": 2,
            "image_token_id": token("<image>"),
        },
        {"image_seq_len": 16},
    ),
    "gemma3": Tiny(
        "<start_of_image>",
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        ("gemma3", "Gemma3ImageProcessorPil", {"size": {"height": 56, "width": 56}}),
        lambda token: {
            "text_config": TEXT
            | {
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "query_pre_attn_scalar": 16,
            },
            "vision_config": SIGLIP | {"image_size": 56},
            "mm_tokens_per_image": 16,
            "boi_token_index": token("<start_of_image>"),
            "eoi_token_index": token("<end_of_image>"),
            "image_token_index": token("<image_soft_token>"),
        },
        {"image_seq_length": 16},
    ),
    "paligemma": Tiny(
        "<image>",
        {"image_token": "<image>"},
        (
            "siglip",
            "SiglipImageProcessorPil",
            {"size": {"height": 28, "width": 28}, "image_seq_length": 16},
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "gemma"},
            "vision_config": SIGLIP | {"projection_dim": 64, "num_image_tokens": 16},
            "projection_dim": 64,
            "image_token_index": token("<image>"),
        },
    ),
    "mistral3": Tiny(
        "[IMG]",
        {"image_token": "[IMG]", "image_break": "[IMG_BREAK]", "image_end": "[IMG_END]"},
        (
            "pixtral",
            "PixtralImageProcessorPil",
            {"size": {"longest_edge": 112}, "patch_size": {"height": 14, "width": 14}},
        ),
        lambda token: {
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 112,
                "patch_size": 14,
            },
            "image_token_index": token("[IMG]"),
            "spatial_merge_size": 2,
        },
        {"patch_size": 14, "spatial_merge_size": 2},
    ),
}
TINY["smolvlm"] = TINY["idefics3"]

TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}PICTURE{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def tiny_tokenizer(base: Any, tiny: Tiny) -> Any:
    """The testbed's tokenizer with a family's special tokens, under its names for them."""
    from tokenizers import Tokenizer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base.backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=dict(tiny.tokens),
    )
    return tokenizer


def tiny_config(tokenizer: Any, family: str) -> Any:
    """The configuration of a tiny model."""
    token = tokenizer.convert_tokens_to_ids
    values = TINY[family].config(token)
    ends = {"bos_token_id": None, "eos_token_id": token("<|im_end|>")}
    ends |= {"pad_token_id": token("<|endoftext|>"), "vocab_size": len(tokenizer)}
    values["text_config"] = values["text_config"] | ends
    return CONFIG_MAPPING[family](**values)


def tiny_model(tokenizer: Any, family: str, seed: int = 0) -> Any:
    """Random weights, large enough that attention is far from uniform."""
    config = tiny_config(tokenizer, family)
    torch.manual_seed(seed)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not weight.any():  # Gemma 3's projector starts as zeros
                weight.normal_(std=0.1)
            elif weight.ndim > 1 and "embed" not in name:
                weight.mul_(8.0 if ".self_attn." in name else 4.0)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return model


def processor(tokenizer: Any, family: str) -> Any:
    """The family's stock processor, without videos, on its own image processor."""
    tiny = TINY[family]
    kind = FAMILIES[family].plain_processor_class()
    videos = [None] if "video_processor" in inspect.signature(kind.__init__).parameters else []
    return kind(
        image_processor(family),
        tokenizer,
        *videos,
        chat_template=TEMPLATE.replace("PICTURE", tiny.picture),
        **tiny.processor,
    )


def tiny_vlm(base: Any, family: str) -> VLM:
    """A tiny model of a family with its processor; ``base`` is the testbed's tokenizer."""
    tokenizer = tiny_tokenizer(base, TINY[family])
    model = tiny_model(tokenizer, family)
    return VLM(model, processor(tokenizer, family), f"tiny {family}", FAMILIES[family])


def image_processor(family: str) -> Any:
    """The family's own image processor, by Pillow."""
    module, name, options = TINY[family].images
    source = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(source, name)(**options)
