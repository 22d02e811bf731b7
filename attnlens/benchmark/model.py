"""Models of realistic shapes with random weights, and prompts of as many visual tokens as asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from attnlens.models.family import Shape as TextShape
from attnlens.models.images import ImageInfo
from attnlens.models.load import TESTBED, VLM
from attnlens.models.prompt import Prompt
from attnlens.models.qwen2_5_vl import QWEN2_5_VL
from attnlens.models.small import random_model, small_vlm

VISION_START, VISION_END, IMAGE, VIDEO = 1, 2, 3, 4
PATCH_VALUES = 3 * 2 * 14 * 14
QUESTION = "What has changed from one picture to the next?"


@dataclass(frozen=True)
class Shape(TextShape):
    """The shape of a text model, and the family around it.

    Attributes
    ----------
    family
        ``model_type``; where empty, it is Qwen2.5-VL, with prompts of any number of visual tokens.
    """

    family: str = ""


SHAPES = {
    "small": Shape(),
    "7b": Shape(28, 3584, 28, 4, 18944, 152064, "bfloat16"),
}
"""``small`` for a CPU (head dimension 128, as in the published models); ``7b`` for a GPU."""


def build(shape: Shape, device: str) -> tuple[VLM, Callable[[int], Prompt]]:
    """Build a model with random weights, and what makes a prompt of so many visual tokens for it.

    Its vision tower is small, as recording ignores it.
    """
    if shape.family:
        vlm = small_vlm(shape.family, shape=shape, device=device)
        return vlm, partial(prompt_of_pictures, vlm)
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.width,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": shape.width,
            "fullatt_block_indexes": [],  # windows only: eager attention over all patches is huge
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(0)
    model = random_model(
        Qwen2_5_VLForConditionalGeneration, config, shape.dtype, torch.device(device)
    )
    processor = QWEN2_5_VL.load_processor(TESTBED)
    vlm = VLM(model, processor, "random weights", QWEN2_5_VL)
    return vlm, partial(prompt_of_tokens, vlm)


def prompt_of_pictures(vlm: VLM, visual: int) -> Prompt:
    """Build a prompt of as many pictures as it takes to have so many visual tokens, or more."""
    rng = np.random.default_rng(0)
    pictures: list[Image.Image] = []
    count = 1
    while True:
        while len(pictures) < count:
            noise = rng.integers(0, 256, (168, 168, 3), dtype=np.uint8)
            pictures.append(Image.fromarray(noise))
        prompt = vlm.prompt(pictures, QUESTION)
        found = visual_tokens(prompt)
        if found >= visual:
            return prompt
        # a family may show less of each picture where there are several
        count = max(count + 1, math.ceil(visual * count / found))


def visual_tokens(prompt: Prompt) -> int:
    """Count the visual tokens of a prompt."""
    return int((prompt.segments == "visual").sum())


def prompt_of_tokens(vlm: VLM, visual: int) -> Prompt:
    """Build a prompt of random tokens around one image of so many visual tokens."""
    device, dtype = vlm.model.device, vlm.model.dtype
    rows = max(r for r in range(1, int(visual**0.5) + 1) if visual % r == 0)
    rng = np.random.default_rng(0)
    before, after = rng.integers(10, 1000, 16), rng.integers(10, 1000, 48)
    ids = np.concatenate([before, [VISION_START], [IMAGE] * visual, [VISION_END], after])
    segments = np.array(
        ["sink"] + ["system"] * 16 + ["visual"] * visual + ["vision_end"] + ["query"] * 48
    )
    columns = visual // rows
    tokens = torch.from_numpy(ids)[None].to(device)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == IMAGE).int(),
        "pixel_values": torch.from_numpy(
            rng.standard_normal((4 * visual, PATCH_VALUES), dtype=np.float32)
        ).to(device, dtype),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]], device=device),
    }
    size = (columns * 28, rows * 28)
    return Prompt(
        inputs,
        segments,
        np.where(segments == "visual", 0, -1),
        (ImageInfo(None, "", *size, rows, columns),),
        "normal",
        "?",
        "",
        (Image.new("RGB", size),),
    )
