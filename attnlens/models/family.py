"""What the package asks of a model family; each family answers in its own file.

A family is added by writing its ``Family`` in a new file and listing it in
``attnlens.models.families``. Nothing else names a family's modules, tokens or inputs. The base
class answers as most families of transformers do: text positions count from 0, and an image is one
grid of visual tokens.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attnlens.errors import InputError
from attnlens.models.images import Frames, Tile, check_pixel_limits

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

    @property
    def count(self) -> int:
        """Number of visual tokens in the sequence."""
        return self.rows * self.columns if self.kept is None else len(self.kept)


@dataclass(frozen=True)
class Shape:
    """The shape of a text model, and its weights' dtype."""

    layers: int = 8
    width: int = 1024
    heads: int = 8
    key_heads: int = 2
    mlp: int = 2816
    vocabulary: int = 32000
    dtype: str = "float32"

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


SMALL_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 7,
}
"""A small vision tower, in the words that most configurations share."""


@dataclass(frozen=True)
class Small:
    """What a small model of a family is made of (``attnlens.models.small`` builds it).

    Attributes
    ----------
    tokens
        Special tokens, by the names that the family's tokenizer gives them.
    picture, video
        What the chat template writes for an image and for a video; empty for what it does not take.
    images
        The family's image processor, which needs only Pillow, set to small pictures.
    config
        Values of its configuration. ``text_config`` holds what the shape of the text model does not
        say; a special token stands for its id.
    processor
        Further options of the processor.
    """

    tokens: dict[str, str]
    picture: str
    images: Any
    config: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)
    video: str = ""


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
        The text layers' attention modules, by layer index; None for a layer without softmax.
    blocks
        The parts of the text layers.
    norm, unembed
        What turns the residual stream after the last layer into logits.
    windows
        Number of keys, its own among them, that each layer's queries see; None for all.
    """

    generator: Any
    multimodal: nn.Module
    vision: nn.Module
    text: Any
    attention: tuple[nn.Module | None, ...]
    blocks: tuple[Block, ...]
    norm: Any
    unembed: Any
    windows: tuple[int | None, ...]

    @property
    def without_attention(self) -> tuple[int, ...]:
        """Indices of the layers without softmax attention."""
        return tuple(i for i, module in enumerate(self.attention) if module is None)

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
        What opens and closes an image, in order; empty where nothing does.
    video
        The placeholder of a visual token of a video, where there are any.
    """

    image: int
    visual: tuple[int, ...]
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    video: int | None = None


TOKEN_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs with one value for each token; the others belong to images."""


class Family(ABC):
    """One model family.

    Attributes
    ----------
    model_type
        ``model_type`` of its configuration.
    name
        What people call it.
    no_insertion
        Why visual tokens cannot be inserted into a generation; empty where they can.
    both_ways
        Whether tokens of the prompt see later ones.
    other_layers
        Kinds of layers that are recorded (``window``) or left out (``none``) besides ``full``.
    bridged
        Whether TransformerLens's bridge has been verified for it.
    window_advice
        What to do about layers that attend to a window.
    videos
        Whether videos have been verified for it.
    verified_with
        Versions of transformers, lowest and newest, that the tests of the family pass with.
    """

    model_type: ClassVar[str]
    name: ClassVar[str]
    both_ways: ClassVar[bool] = False
    other_layers: ClassVar[tuple[str, ...]] = ()
    bridged: ClassVar[bool] = False
    videos: ClassVar[bool] = False
    window_advice: ClassVar[str] = "attnlens records these in Gemma 3 alone; give another model"
    verified_with: ClassVar[str] = "5.20 to 5.24"
    no_insertion: ClassVar[str] = ""

    # Loading

    def model_class(self) -> Any:
        """Class of transformers that loads and generates."""
        from transformers import AutoModelForImageTextToText

        names = AutoModelForImageTextToText._model_mapping._model_mapping
        return _of_transformers(names[self.model_type])

    def processor_class(self) -> Any:
        """Class of transformers that makes inputs of texts and pictures."""
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

        return _of_transformers(PROCESSOR_MAPPING_NAMES[self.model_type])

    def plain_processor_class(self) -> Any:
        """Class of a processor that needs no torchvision."""
        return without_videos(self.processor_class())

    def load_processor(self, folder: str | Path, **hub: Any) -> Any:
        """Load the processor of a checkpoint, a folder or a Hub name.

        The stock one where it can be built, else one that needs no torchvision and knows no
        videos. ``hub`` is passed on to ``from_pretrained`` (revision, token, cache folder).
        """
        try:
            processor = self.processor_class().from_pretrained(folder, **hub)
        except (ImportError, OSError, ValueError, TypeError):
            processor = self.plain_processor_class().from_pretrained(folder, **hub)
        if not processor.chat_template:  # some fine-tunes keep it with the tokenizer alone
            processor.chat_template = processor.tokenizer.chat_template
        return processor

    def pixel_limits(
        self, processor: Any, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PixelLimits | None:
        """Limits of an image's area after resizing; the processor's own where none is given.

        None where the family's images have no such limits.

        Raises
        ------
        InputError
            If one is no whole number, no visual token fits, the smaller one is larger, or the
            family has no such limits.
        """
        check_pixel_limits(min_pixels, max_pixels)
        if (min_pixels, max_pixels) != (None, None):
            raise InputError(
                f"min_pixels={min_pixels}, max_pixels={max_pixels}: {self.name} resizes images to "
                "sizes of its own; leave them out"
            )
        return None

    def set_pixel_limits(self, processor: Any, limits: PixelLimits) -> None:
        """Set the processor's own limits."""
        raise NotImplementedError

    def small(self, shape: Shape) -> Small:
        """Say what a small model of this family with random weights is made of."""
        raise NotImplementedError

    # The model

    def parts(self, generator: Any) -> Parts:
        """Find the parts of a model of this family."""
        multimodal = generator.model
        text = _first(multimodal, "language_model", "text_model")
        kinds = self.layer_kinds(text.config)
        window = getattr(text.config, "sliding_window", None)
        return Parts(
            generator=generator,
            multimodal=multimodal,
            vision=_first(multimodal, "visual", "vision_tower", "vision_model"),
            text=text,
            attention=tuple(getattr(layer, "self_attn", None) for layer in text.layers),
            blocks=tuple(map(block_of, text.layers)),
            norm=text.norm,
            unembed=generator.lm_head,
            windows=tuple(window if kind == "window" else None for kind in kinds),
        )

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """Ids of the tokens that stand for images and around them."""
        return SpecialTokens(config.image_token_id, (config.image_token_id,))

    def layer_kinds(self, config: Any) -> tuple[str, ...]:
        """How each text layer attends: ``full``, ``window`` or ``none``."""
        text = config.get_text_config()
        kinds = getattr(text, "layer_types", None)
        known = {"full_attention": "full", "linear_attention": "none"}
        if kinds is None:
            # without kinds, a window holds for all layers (Mistral)
            one = "full" if getattr(text, "sliding_window", None) is None else "window"
            return (one,) * text.num_hidden_layers
        return tuple(known.get(kind, "window") for kind in kinds)

    def check_layers(self, config: Any, label: str = "the model") -> None:
        """Refuse layers that do not keep a key for every token.

        ``config`` is that of the model or of its text model; messages call it ``label``.

        Raises
        ------
        InputError
            If a layer does not attend to the whole sequence.
        """
        others = {*self.layer_kinds(config)} - {"full", *self.other_layers}
        if others:
            raise InputError(
                f"{label} has layers with sliding-window attention, whose caches drop keys: "
                f"{self.window_advice}"
            )

    # Prompts

    def write(self, processor: Any, messages: list[dict[str, Any]]) -> str:
        """Write chat messages as the checkpoint's template has it, up to where it answers."""
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def encode(
        self, processor: Any, text: str, pictures: Sequence[Image.Image], limits: PixelLimits | None
    ) -> Inputs:
        """Turn a text with a placeholder for each RGB picture into inputs.

        The text is what the chat template writes; ``limits`` are the processor's own where None.
        """
        images = list(pictures) or None
        encoded = processor(text=[text], images=images, return_tensors="pt", padding=False)
        return {name: values for name, values in encoded.items() if name != "labels"}

    def frames_in_grid(self, processor: Any) -> int:
        """Return how many frames of a video make one grid of visual tokens."""
        return 1

    @abstractmethod
    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """Grids of the visual tokens of each image, then of each video, in the order of the prompt.

        ``sizes`` are (height, width) of each picture before it was resized.
        """

    def encode_videos(
        self,
        processor: Any,
        text: str,
        pictures: Sequence[Image.Image],
        videos: Sequence[tuple[Sequence[Image.Image], Frames]],
        limits: tuple[int | None, int | None],
    ) -> Inputs:
        """Do as ``encode`` with a text that has placeholders for videos, too.

        ``limits`` are those that the user gave.
        """
        raise NotImplementedError

    def join(self, rows: Sequence[Inputs], padding_id: int) -> Inputs:
        """Join the inputs of single sequences, padded on the left to one length."""
        import torch
        from torch.nn import functional as F

        length = max(row["input_ids"].shape[1] for row in rows)
        inputs = {
            name: torch.cat(
                [
                    F.pad(
                        row[name],
                        (length - row[name].shape[1], 0),
                        value=padding_id if name == "input_ids" else 0,
                    )
                    for row in rows
                ]
            )
            for name in TOKEN_INPUTS
            if all(name in row for row in rows)
        }
        return inputs | self.join_images(rows)

    def join_images(self, rows: Sequence[Inputs], *, same_sequence: bool = False) -> Inputs:
        """Join the images of several inputs, which belong to as many sequences or to one."""
        names = {name: None for row in rows for name in row if name not in TOKEN_INPUTS}
        return {name: _joined([row[name] for row in rows if name in row]) for name in names}

    def append(
        self, config: Any, inputs: Inputs, ids: Sequence[int], images: Inputs | None = None
    ) -> Inputs:
        """Add tokens after the prompt of one sequence.

        ``images`` are inputs whose images belong at the placeholders among the tokens.
        """
        import torch

        more = inputs["input_ids"].new_tensor([list(ids)])
        visual = more == config.image_token_id
        added = dict.fromkeys(TOKEN_INPUTS, visual)
        added |= {"input_ids": more, "attention_mask": torch.ones_like(more)}
        joined = dict(inputs)
        for name, values in added.items():
            if name in inputs:  # a prompt of text alone may come without types
                joined[name] = torch.cat([inputs[name], values.to(inputs[name].dtype)], dim=1)
        if images is None:
            return joined
        return joined | self.join_images([inputs, images], same_sequence=True)

    def pixels(self, inputs: Inputs) -> torch.Tensor:
        """Return the pixels of all images, as the vision tower takes them."""
        return inputs["pixel_values"]

    # Features and positions

    def image_features(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """Features of all images as the text model takes them, [visual tokens, width].

        Image after image. Families whose features enter several layers give those of all of them
        side by side, the input's first: [visual tokens, layers x width].
        """
        import torch

        options = {name: v for name, v in inputs.items() if name not in TOKEN_INPUTS}
        found = model.get_image_features(**options, return_dict=True).pooler_output
        parts = [found] if isinstance(found, torch.Tensor) else list(found)
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    def features_in(self, output: Any) -> torch.Tensor | None:
        """Return the same from the output of the vision tower; None where more follows it."""
        return None

    def further_features(self, visual: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """Return what the text model takes for visual tokens besides their embeddings.

        ``visual`` is bool [1, tokens], and ``features`` [visual tokens, layers, width] are what
        ``image_features`` gives beyond the width of the model.
        """
        return {}

    def rotary_positions(self, generator: Any, inputs: Inputs) -> torch.Tensor:
        """Rotary positions of a prompt's tokens, int64 [axes, batch, keys]."""
        return (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)[None]

    def positions_from(
        self, start: int, pieces: Sequence[int | ImagePiece]
    ) -> tuple[np.ndarray, int]:
        """Rotary positions of consecutive text and images, and the position of what follows.

        ``pieces`` are numbers of text tokens, or images, in the order of the sequence; the first
        token is at ``start``. The positions are int64 [axes, tokens].
        """
        import numpy as np

        end = start + sum(p if isinstance(p, int) else p.count for p in pieces)
        return np.arange(start, end, dtype=np.int64)[None], end

    def position_ids(self, slots: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """Make what the text model takes as ``position_ids``.

        ``slots`` are places in the cache, int64 [keys]; ``rotary`` are rotary positions, int64
        [axes, keys] or [axes, 1, keys].
        """
        return rotary.reshape(1, -1)

    def next_position(self, position_ids: torch.Tensor) -> int:
        """Rotary position of the first token of a pass over text."""
        return int(position_ids[0, 0])

    def moved(self, position_ids: torch.Tensor, slots: int, rotary: int) -> torch.Tensor:
        """Move position ids by a number of cache slots and of rotary positions."""
        return position_ids + rotary


def block_of(layer: Any) -> Block:
    """Find the parts of a text layer; None for one that is not there."""
    attention = getattr(layer, "self_attn", None)
    values, output = (getattr(attention, name, None) for name in ("v_proj", "o_proj"))
    return Block(layer, values, output, getattr(layer, "mlp", None))


def square(tokens: int) -> Tile:
    """Return the grid of an image whose visual tokens form a square.

    Raises
    ------
    InputError
        If they do not.
    """
    side = round(tokens**0.5)
    if side**2 != tokens:
        raise InputError(f"an image of {tokens} visual tokens is no square grid")
    return Tile(side, side)


def without_videos(stock: Any) -> Any:
    """Return a processor class without its video processor, which needs torchvision."""
    if "video_processor" not in inspect.signature(stock.__init__).parameters:
        return stock

    class ImageTextProcessor(stock):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: list, processor_dict: dict, **options: Any) -> Any:
            # the third parameter of all of them is the video processor
            return super().from_args_and_dict([*args, None], processor_dict, **options)

    ImageTextProcessor.__name__ = stock.__name__  # the name that is saved
    return ImageTextProcessor


def _of_transformers(name: str | Mapping | tuple) -> Any:
    """Find a class of transformers, also where a missing torchvision hides it."""
    import transformers

    one = name if isinstance(name, str) else next(iter(name))
    found = getattr(transformers, one)
    if getattr(found, "is_dummy", False):
        return getattr(importlib.import_module(found.__module__), one)
    return found


def _first(module: Any, *names: str) -> Any:
    """Return the first part of a module that is there."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise InputError(f"{type(module).__name__} has none of {', '.join(names)}")


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Join along the first dimension, with zeros at the end of the others."""
    import torch
    from torch.nn import functional as F

    most = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [
            amount
            for size, limit in reversed(list(zip(tensor.shape[1:], most, strict=True)))
            for amount in (0, limit - size)
        ]
        padded.append(F.pad(tensor, missing) if any(missing) else tensor)
    return torch.cat(padded)
