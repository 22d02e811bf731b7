"""What differs between model families, in one place; Qwen2.5-VL is the family that is supported.

Another family is added by writing its ``Family`` and listing it in ``FAMILIES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parts:
    """The parts of a model that recording attaches to.

    Attributes
    ----------
    generator
        The module whose ``generate`` is called.
    multimodal
        The module that receives ``input_ids`` together with images.
    vision
        The vision tower.
    text
        The text model: one call is one forward pass over the key-value cache.
    attention
        The text layers' attention modules, by layer index.
    """

    generator: Any
    multimodal: nn.Module
    vision: nn.Module
    text: Any
    attention: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes
    ----------
    model_type
        ``model_type`` of its configuration.
    name
        What people call it.
    """

    model_type: str
    name: str

    def model_class(self) -> Any:
        """Class of transformers that loads and generates."""
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def special_ids(self, config: Any) -> dict[str, int]:
        """Ids of the image, video and vision-end tokens."""
        return {
            "image": config.image_token_id,
            "video": config.video_token_id,
            "vision_end": config.vision_end_token_id,
        }

    def check_layers(self, config: Any, given: str = "the model") -> None:
        """Refuse layers whose caches drop keys.

        Parameters
        ----------
        config
            Configuration of the model or of its text model.
        given
            What messages call it.

        Raises
        ------
        InputError
            If a layer uses sliding-window attention.
        """
        if any(kind != "full_attention" for kind in config.get_text_config().layer_types):
            raise InputError(
                f"{given} has layers with sliding-window attention, whose caches drop keys: set "
                "use_sliding_window to false and remove layer_types in its config.json, and load "
                "it anew; answers change where a text is longer than the window"
            )

    def parts(self, model: Any) -> Parts:
        """Find the parts of a model, also inside wrappers such as PEFT's.

        Raises
        ------
        InputError
            If the model does not contain one of this family, or its layers use sliding-window
            attention, whose caches drop keys.
        """
        kind = self.model_class()
        found = [m for m in model.modules() if isinstance(m, kind)]
        if not found:
            raise InputError(
                f"{type(model).__name__} is not a {self.name} model: give a {kind.__name__}"
            )
        generator = found[0]
        text = generator.model.language_model
        self.check_layers(text.config)
        return Parts(
            generator=generator,
            multimodal=generator.model,
            vision=generator.model.visual,
            text=text,
            attention=tuple(layer.self_attn for layer in text.layers),
        )


QWEN2_5_VL = Family(model_type="qwen2_5_vl", name="Qwen2.5-VL")
FAMILIES: dict[str, Family] = {QWEN2_5_VL.model_type: QWEN2_5_VL}
"""Supported families by ``model_type``."""


def family_of(config: Any, given: str) -> Family:
    """Return the family of a configuration.

    Parameters
    ----------
    config
        A transformers configuration.
    given
        What the user named, for the message.

    Raises
    ------
    InputError
        If the family is not supported.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise InputError(
            f"{given!r} is a {model_type!r} checkpoint: attnlens reads "
            f"{', '.join(f.name for f in FAMILIES.values())} checkpoints"
        )
    return FAMILIES[model_type]


def parts_of(model: Any) -> Parts:
    """Find the parts of a model of any supported family; see ``Family.parts``.

    Raises
    ------
    InputError
        If it is of none of them.
    """
    for family in FAMILIES.values():
        if any(isinstance(module, family.model_class()) for module in model.modules()):
            return family.parts(model)
    classes = ", ".join(family.model_class().__name__ for family in FAMILIES.values())
    raise InputError(f"{type(model).__name__} is no supported model: give a {classes}")
