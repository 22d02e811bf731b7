"""The supported families, and which of them a model belongs to."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.family import Family, Parts
from attnlens.models.gemma3 import GEMMA3
from attnlens.models.generic import Generic
from attnlens.models.glm4v import GLM4V_FAMILY
from attnlens.models.idefics3 import IDEFICS3, SMOLVLM
from attnlens.models.internvl import INTERNVL
from attnlens.models.llava import LLAVA
from attnlens.models.llava_next import LLAVA_NEXT
from attnlens.models.llava_onevision import LLAVA_ONEVISION
from attnlens.models.mistral3 import MISTRAL3
from attnlens.models.paligemma import PALIGEMMA
from attnlens.models.qwen2_5_vl import QWEN2_5_VL
from attnlens.models.qwen2_vl import QWEN2_VL
from attnlens.models.qwen3_5 import QWEN3_5
from attnlens.models.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE

if TYPE_CHECKING:
    from torch import nn

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        QWEN2_5_VL,
        QWEN2_VL,
        QWEN3_VL,
        QWEN3_VL_MOE,
        QWEN3_5,
        GLM4V_FAMILY,
        LLAVA,
        LLAVA_NEXT,
        LLAVA_ONEVISION,
        INTERNVL,
        IDEFICS3,
        SMOLVLM,
        GEMMA3,
        PALIGEMMA,
        MISTRAL3,
    )
}
"""Supported families by ``model_type``."""


def family_of(config: Any, label: str) -> Family:
    """Return the family of a configuration.

    ``label`` is what messages call the checkpoint.

    Raises
    ------
    InputError
        If the family is not supported.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    from transformers import AutoModelForImageTextToText

    known = AutoModelForImageTextToText._model_mapping._model_mapping
    if (
        model_type is None
        or model_type not in known
        or getattr(config, "image_token_id", None) is None
    ):
        raise InputError(
            f"{label!r} is a {model_type!r} checkpoint: attnlens reads checkpoints of "
            f"{', '.join(names())}, and tries others whose images are placeholders among the tokens"
        )
    return Generic(model_type)


def parts_of(model: Any) -> Parts:
    """Find the parts of a model of any supported family, also inside wrappers.

    Such as PEFT's, or TransformerLens's bridge, which keeps the model in ``original_model``.

    Raises
    ------
    InputError
        If it is of none of them and not built as most are, or a layer does not attend to the whole
        sequence.
    """
    model = getattr(model, "original_model", model)
    if not hasattr(model, "modules"):
        raise InputError(f"{type(model).__name__} is no model: give what attnlens.load returns")
    for module in model.modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type and hasattr(module, "generate"):
            family = FAMILIES.get(model_type) or Generic(model_type)
            parts = family.parts(module)
            family.check_layers(parts.text.config)
            return replace(parts, attention=tuple(m and _attention_in(m) for m in parts.attention))
    raise InputError(
        f"{type(model).__name__} is no supported model: give one of {', '.join(names())}"
    )


def is_verified(parts: Parts) -> bool:
    """Whether a model is of a family that the tests verify."""
    return parts.generator.config.model_type in FAMILIES


def names() -> list[str]:
    """Names of the supported families."""
    return [family.name for family in FAMILIES.values()]


def _attention_in(module: nn.Module) -> nn.Module:
    """Return the attention of transformers, also inside a wrapper of another library.

    Its module defines the attention function that ``eager`` stands for.
    """
    for inner in module.modules():
        if hasattr(sys.modules[type(inner).__module__], "eager_attention_forward"):
            return inner
    raise InputError(
        f"the attention modules are of type {type(module).__name__}, which is not from "
        "transformers: give the model without what wraps it"
    )
