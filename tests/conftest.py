"""Small real models for the tests, built from a configuration."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the tests run in several processes

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

import attnlens

if TYPE_CHECKING:
    from attnlens.models.load import VLM

# torch and transformers are imported where they are needed: pytest-xdist reads this file in a
# process that runs no test, before it starts those that do

compiles = pytest.mark.skipif(
    Version(version("torch")) < Version("2.8"),
    reason="torch 2.6 cannot compile this forward of transformers, recorded or not",
)


VISION = {
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64},
}
"""A small vision tower of each family."""


def tiny_model(tokenizer, seed: int = 0, layers: int = 3, family: str = "qwen2_5_vl"):
    """Random weights, large enough that attention is far from uniform."""
    import torch

    from attnlens.models.families import FAMILIES

    token = tokenizer.convert_tokens_to_ids
    torch.manual_seed(seed)
    model_class = FAMILIES[family].model_class()
    config = model_class.config_class(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config=VISION[family],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(12.0 if ".self_attn." in name else 4.0)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


@pytest.fixture(scope="session")
def tokenizer():
    from attnlens.testbed.model.tokenizer import corpus, train_tokenizer

    return train_tokenizer(corpus(0, 20))


@pytest.fixture(scope="session")
def tiny(tokenizer) -> VLM:
    return tiny_vlm(tokenizer, "qwen2_5_vl")


def tiny_vlm(tokenizer, family: str) -> VLM:
    """A small model of a family with its processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    from attnlens.models.families import FAMILIES
    from attnlens.models.load import VLM
    from attnlens.testbed.model.architecture import build_processor

    processor = build_processor(tokenizer)
    # 16 to 36 visual tokens: small pictures keep the tests quick
    processor.image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * 28**2, "longest_edge": 36 * 28**2}
    )
    return VLM(tiny_model(tokenizer, family=family), processor, "tiny", FAMILIES[family])


@pytest.fixture(scope="session")
def testbed() -> VLM:
    return attnlens.load("testbed")


def same_inputs(one: dict, other: dict) -> bool:
    """Whether two prompts are the same, up to how torchvision, where it is there, rounds pixels."""
    import torch
    from transformers.utils import is_torchvision_available

    near = {"atol": 0.05} if is_torchvision_available() else {"rtol": 0, "atol": 0}
    return list(one) == list(other) and all(
        torch.allclose(one[name].double(), other[name].double(), **near) for name in one
    )


def picture(width: int = 112, height: int = 112, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: walking through it takes minutes in all."""
    gc.collect()
    gc.freeze()


@contextmanager
def unpainted_figures() -> Iterator[None]:
    """Make figures without laying them out or painting them, which takes most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlens.plots.figure.lay_out", lambda _: None)
        patch.setattr(
            "attnlens.plots.figure.render",
            lambda _figure, file_format, *, dpi: f"a picture as {file_format}".encode(),
        )
        yield
