"""Small models with random weights, one of each family: to try calls, test and measure.

What each is made of, its family says in ``Family.small``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.models.families import FAMILIES
from attnlens.models.family import Shape
from attnlens.models.load import TESTBED, VLM, find_device

SMALL = Shape(layers=3, width=64, heads=4, key_heads=2, mlp=96, vocabulary=0)
"""The smallest shape that has all that attention in large models has."""

PICTURE, VIDEO = "PICTURE", "VIDEO"
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}PICTURE
{%- elif part.type == 'video' -%}VIDEO
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""A plain chat layout, with places for what a family writes for an image and for a video."""


def small_vlm(name: str, *, shape: Shape = SMALL, seed: int = 0, device: str = "cpu") -> VLM:
    """Build a small model of a family with random weights, and its processor.

    It shows calls and what comes back; what it attends to and says means nothing, and it may end at
    once (``min_new_tokens`` keeps it from that). Written to a
    folder by ``vlm.model.save_pretrained`` and ``vlm.processor.save_pretrained``, it is a
    checkpoint that ``attnlens.load`` reads.

    Parameters
    ----------
    name
        ``model_type`` of the family, as ``attnlens families`` prints it.
    shape
        Shape and dtype of the text model; its vocabulary is at least the tokenizer's. The vision
        tower stays tiny, and pictures are made small: some 16 to 80 visual tokens.
    seed
        Of the weights. Torch's generators are set back afterwards.
    device
        Where it is built.

    Returns
    -------
    VLM
        The model is one of transformers' own class. The processor is the family's own without
        videos, with the testbed's tokenizer, to which the family's special tokens are added, and a
        plain chat template.

    Raises
    ------
    InputError
        If there is no such family, its processor needs a package that is not there, or the device
        is not there.
    """
    processor = small_processor(name)
    family = FAMILIES[name]
    small = family.small(shape)
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>")}
    text = {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 32768,
        "vocab_size": max(len(tokenizer), shape.vocabulary),
        "bos_token_id": None,
        **ends,
        **small.config["text_config"],
    }
    ids = {k: token(v) for k, v in small.config.items() if isinstance(v, str)}
    kind = family.model_class()
    config = kind.config_class(**small.config | ids | {"text_config": text})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = random_model(kind, config, shape.dtype, find_device(device))
        spread(model, shape.width)
    for end, value in ends.items():
        setattr(model.generation_config, end, value)
    return VLM(model, processor, f"small {name}", family)


def small_processor(name: str) -> Any:
    """Build the processor of a small model, without videos.

    Raises
    ------
    InputError
        If there is no such family, or it needs a package that is not there.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown family {name!r}: use one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    small = family.small(SMALL)
    kind = family.plain_processor_class()
    videos = [None] if "video_processor" in inspect.signature(kind.__init__).parameters else []
    template = TEMPLATE.replace(PICTURE, small.picture).replace(VIDEO, small.video)
    tokenizer = small_tokenizer(small.tokens)
    try:
        return kind(small.images, tokenizer, *videos, chat_template=template, **small.processor)
    except ImportError as error:
        raise InputError(f"the processor of {family.name} cannot be built: {error}") from error


def small_tokenizer(tokens: Mapping[str, str]) -> Any:
    """Load the testbed's tokenizer and add special tokens, under a family's names for them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(TESTBED / "tokenizer.json")),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=dict(tokens),
    )


def random_model(kind: Any, config: Any, dtype: str, device: torch.device) -> Any:
    """Build a model with the first weights of transformers, by torch's global generator."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            return kind(config).eval()
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def spread(model: Any, width: int) -> None:
    """Make weights so large that attention is far from uniform, in place.

    ``width`` is that of the text model: scores grow with it, so that wider models need less.
    """
    share = (SMALL.width / width) ** 0.5
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not weight.any():  # a projector may start as zeros
            weight.normal_(std=0.1)
        elif weight.ndim > 1 and "embed" not in name:
            weight.mul_(share * (8.0 if ".self_attn." in name else 4.0))
