"""The supported families, and which of them a model belongs to."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.family import Family, Parts
from attnlens.models.qwen2_5_vl import QWEN2_5_VL
from attnlens.models.qwen2_vl import QWEN2_VL

if TYPE_CHECKING:
    from torch import nn

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2_5_VL, QWEN2_VL)}
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
    if model_type not in FAMILIES:
        raise InputError(
            f"{label!r} is a {model_type!r} checkpoint: attnlens reads "
            f"{' and '.join(f.name for f in FAMILIES.values())} checkpoints"
        )
    return FAMILIES[model_type]


def parts_of(model: Any) -> Parts:
    """Find the parts of a model of any supported family, also inside wrappers.

    Such as PEFT's, or TransformerLens's bridge, which keeps the model in ``original_model``.

    Raises
    ------
    InputError
        If it is of none of them, or a layer does not attend to the whole sequence.
    """
    model = getattr(model, "original_model", model)
    if not hasattr(model, "modules"):
        raise InputError(f"{type(model).__name__} is no model: give what attnlens.load returns")
    for family in FAMILIES.values():
        kind = family.model_class()
        generator = next((m for m in model.modules() if isinstance(m, kind)), None)
        if generator is not None:
            parts = family.parts(generator)
            family.check_layers(parts.text.config)
            return replace(parts, attention=tuple(map(_attention_in, parts.attention)))
    classes = " or a ".join(family.model_class().__name__ for family in FAMILIES.values())
    raise InputError(f"{type(model).__name__} is no supported model: give a {classes}")


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
