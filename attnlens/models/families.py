"""The supported families, and which of them a model belongs to."""

from __future__ import annotations

from typing import Any

from attnlens.errors import InputError
from attnlens.models.family import Family, Parts
from attnlens.models.qwen2_5_vl import QWEN2_5_VL
from attnlens.models.qwen2_vl import QWEN2_VL

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
    """Find the parts of a model of any supported family, also inside wrappers such as PEFT's.

    Raises
    ------
    InputError
        If it is of none of them, or a layer does not attend to the whole sequence.
    """
    for family in FAMILIES.values():
        kind = family.model_class()
        generator = next((m for m in model.modules() if isinstance(m, kind)), None)
        if generator is not None:
            parts = family.parts(generator)
            family.check_layers(parts.text.config)
            return parts
    classes = " or a ".join(family.model_class().__name__ for family in FAMILIES.values())
    raise InputError(f"{type(model).__name__} is no supported model: give a {classes}")
