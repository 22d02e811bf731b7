"""What the package asks of a model family; each family answers in its own file.

A family is added by writing its ``Family`` in a new file and listing it in
``attnlens.models.families``. Nothing else names a family's modules, tokens or inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attnlens.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn


Inputs = dict[str, "torch.Tensor"]
"""What ``model.generate(**inputs)`` takes."""
PixelLimits = tuple[int, int]
"""Smallest and largest area of an image after resizing, in pixels."""


@dataclass(frozen=True)
class ImagePiece:
    """Visual tokens of one image, all or some.

    Attributes
    ----------
    rows, columns
        Grid of the whole image, in visual tokens.
    kept
        Indices of the visual tokens in the sequence, in reading order; all when None.
    """

    rows: int
    columns: int
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Block:
    """The parts of one text layer.

    Attributes
    ----------
    layer
        Takes the residual stream, and returns it with what the layer adds.
    values
        Projects to the values, [..., key heads x dimension].
    output
        Projects the heads' outputs, [..., heads x dimension], to what attention adds.
    mlp
        Gives the rest of what the layer adds.
    """

    layer: Any
    values: Any
    output: Any
    mlp: Any


@dataclass(frozen=True)
class Parts:
    """The parts of a model that recording and interventions attach to.

    Attributes
    ----------
    generator
        The module whose ``generate`` is called.
    multimodal
        The module that receives ``input_ids`` together with images.
    vision
        The vision tower.
    text
        The text model; each call is one forward pass over the key-value cache.
    attention
        The text layers' attention modules, by layer index.
    blocks
        The parts of the text layers.
    norm, unembed
        What turns the residual stream after the last layer into logits.
    """

    generator: Any
    multimodal: nn.Module
    vision: nn.Module
    text: Any
    attention: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]
    norm: Any
    unembed: Any

    @property
    def layer_count(self) -> int:
        """Number of text layers."""
        return len(self.attention)

    @property
    def head_count(self) -> int:
        """Number of query heads in each text layer."""
        return int(self.text.config.num_attention_heads)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token adds to the cache, over all layers."""
        config = self.text.config
        width = getattr(config, "head_dim", None) or config.hidden_size // self.head_count
        size = next(self.text.parameters()).element_size()
        return int(2 * self.layer_count * config.num_key_value_heads * width * size)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that stand for images and around them.

    Attributes
    ----------
    image
        The placeholder of a visual token of an image.
    visual
        The placeholders of visual tokens of every kind, videos among them.
    start, end
        What opens and closes an image.
    """

    image: int
    visual: tuple[int, ...]
    start: int
    end: int


class Family(ABC):
    """One model family.

    Attributes
    ----------
    model_type
        ``model_type`` of its configuration.
    name
        What people call it.
    """

    model_type: ClassVar[str]
    name: ClassVar[str]

    # Loading

    @abstractmethod
    def model_class(self) -> Any:
        """Class of transformers that loads and generates."""

    @abstractmethod
    def load_processor(self, folder: str | Path, **hub: Any) -> Any:
        """Load the processor of a checkpoint, a folder or a Hub name.

        ``hub`` is passed on to ``from_pretrained`` (revision, token, cache folder).
        """

    @abstractmethod
    def pixel_limits(
        self, processor: Any, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PixelLimits:
        """Limits of an image's area after resizing; the processor's own where none is given.

        Raises
        ------
        InputError
            If one is no whole number, no visual token fits, or the smaller one is larger.
        """

    @abstractmethod
    def set_pixel_limits(self, processor: Any, limits: PixelLimits) -> None:
        """Set the processor's own limits."""

    # The model

    @abstractmethod
    def parts(self, generator: Any) -> Parts:
        """Find the parts of a model of this family."""

    @abstractmethod
    def special_tokens(self, config: Any) -> SpecialTokens:
        """Ids of the tokens that stand for images and around them."""

    @abstractmethod
    def layer_kinds(self, config: Any) -> tuple[str, ...]:
        """How each text layer attends: ``full``, ``window`` or ``none``."""

    def check_layers(self, config: Any, label: str = "the model") -> None:
        """Refuse layers that do not keep a key for every token.

        ``config`` is that of the model or of its text model; messages call it ``label``.

        Raises
        ------
        InputError
            If a layer does not attend to the whole sequence.
        """
        if any(kind != "full" for kind in self.layer_kinds(config)):
            raise InputError(
                f"{label} has layers with sliding-window attention, whose caches drop keys: set "
                "use_sliding_window to false and remove layer_types in its config.json, and load "
                "it anew; answers change where a text is longer than the window"
            )

    # Prompts

    @abstractmethod
    def encode(
        self, processor: Any, text: str, pictures: Sequence[Image.Image], limits: PixelLimits | None
    ) -> Inputs:
        """Turn a text with a placeholder for each RGB picture into inputs.

        The text is what the chat template writes; ``limits`` are the processor's own where None.
        """

    @abstractmethod
    def grids(self, config: Any, inputs: Inputs) -> list[tuple[int, int]]:
        """(rows, columns) of visual tokens of each image, in the order of the prompt."""

    @abstractmethod
    def join(self, rows: Sequence[Inputs], padding_id: int) -> Inputs:
        """Join the inputs of single sequences, padded on the left to one length."""

    @abstractmethod
    def append(
        self, config: Any, inputs: Inputs, ids: Sequence[int], images: Inputs | None = None
    ) -> Inputs:
        """Add tokens after the prompt of one sequence.

        ``images`` are inputs whose images belong at the placeholders among the tokens.
        """

    @abstractmethod
    def pixels(self, inputs: Inputs) -> torch.Tensor:
        """Return the pixels of all images, as the vision tower takes them."""

    # Features and positions

    @abstractmethod
    def image_features(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """Vision features of all images, [visual tokens, width], image after image."""

    @abstractmethod
    def features_in(self, output: Any) -> torch.Tensor:
        """Return the same from the output of the vision tower."""

    @abstractmethod
    def rotary_positions(self, generator: Any, inputs: Inputs) -> torch.Tensor:
        """Rotary positions of a prompt's tokens, int64 [axes, batch, keys]."""

    @abstractmethod
    def positions_from(
        self, start: int, pieces: Sequence[int | ImagePiece]
    ) -> tuple[np.ndarray, int]:
        """Rotary positions of consecutive text and images, and the position of what follows.

        ``pieces`` are numbers of text tokens, or images, in the order of the sequence; the first
        token is at ``start``. The positions are int64 [axes, tokens].
        """

    @abstractmethod
    def position_ids(self, slots: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """Make what the text model takes as ``position_ids``.

        ``slots`` are places in the cache, int64 [keys]; ``rotary`` are rotary positions, int64
        [axes, keys] or [axes, 1, keys].
        """

    @abstractmethod
    def next_position(self, position_ids: torch.Tensor) -> int:
        """Rotary position of the first token of a pass over text."""

    @abstractmethod
    def moved(self, position_ids: torch.Tensor, slots: int, rotary: int) -> torch.Tensor:
        """Move position ids back by a number of cache slots and of rotary positions."""
