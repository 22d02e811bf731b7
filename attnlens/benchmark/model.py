"""Random-weight Qwen2.5-VL models with realistic shapes, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from attnlens.models.images import ImageInfo
from attnlens.models.load import TESTBED, VLM
from attnlens.models.prompt import Prompt
from attnlens.models.qwen2_5_vl import QWEN2_5_VL

VISION_START, VISION_END, IMAGE, VIDEO = 1, 2, 3, 4
PATCH_VALUES = 3 * 2 * 14 * 14


@dataclass(frozen=True)
class Shape:
    """The shape of a text model (head dimension ``width / heads``), and its weights' dtype."""

    layers: int = 8
    width: int = 1024
    heads: int = 8
    key_heads: int = 2
    mlp: int = 2816
    vocabulary: int = 32000
    dtype: str = "float32"


SHAPES = {
    "small": Shape(),
    "7b": Shape(28, 3584, 28, 4, 18944, 152064, "bfloat16"),
}
"""``small`` for a CPU (head dimension 128, as in the published models); ``7b`` for a GPU."""


def build(shape: Shape, device: str) -> VLM:
    """Build a model with random weights, and the testbed's processor.

    Its vision tower is small, as recording ignores it.
    """
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
    dtype = getattr(torch, shape.dtype)
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Qwen2_5_VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(default)
    return VLM(model.eval(), QWEN2_5_VL.load_processor(TESTBED), "random weights", QWEN2_5_VL)


def build_prompt(vlm: VLM, visual: int) -> Prompt:
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
