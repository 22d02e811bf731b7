"""Qwen2.5-VL: where its layers and visual tokens are, its inputs, and its positions.

Its stock processor needs a video processor, which needs torchvision. ``ImageTextProcessor`` is the
stock processor without videos: it reads the same folders and Hub layouts, and needs only Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.processing_utils import ProcessingKwargs
from transformers.utils import is_torchvision_available

from attnlens.errors import InputError
from attnlens.models.family import (
    Family,
    ImagePiece,
    Inputs,
    PixelLimits,
    Shape,
    Small,
    SpecialTokens,
)
from attnlens.models.images import Frames, Tile, check_pixel_limits
from attnlens.models.qwen_videos import encode_with_videos, frame_limits

if TYPE_CHECKING:
    from PIL import Image

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"


class _Defaults(ProcessingKwargs, total=False):  # type: ignore[call-arg, misc, unused-ignore]
    # transformers before 5.23 takes this from here, and later ones from the processor's attribute;
    # without the token types the 3-D rotary positions are silently wrong
    _defaults = {  # noqa: RUF012
        "text_kwargs": {"padding": False, "return_mm_token_type_ids": True}
    }


class ImageTextProcessor(ProcessorMixin):
    """Tokenizer and image processor of Qwen2.5-VL, without videos.

    Parameters
    ----------
    image_processor
        A Qwen2-VL image processor.
    tokenizer
        The tokenizer, with ``<|image_pad|>`` in its vocabulary.
    chat_template
        Jinja template of the chat layout.
    """

    return_mm_token_type_ids = True
    valid_processor_kwargs = _Defaults

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        self.image_token = getattr(tokenizer, "image_token", None) or IMAGE_TOKEN
        self.video_token = getattr(tokenizer, "video_token", None) or VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **_: Any) -> str:
        """Repeat the placeholder of one image for each of its visual tokens."""
        visual = image_inputs["image_grid_thw"][image_idx].prod()
        return self.image_token * int(visual // self.image_processor.merge_size**2)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return [*super().model_input_names, "mm_token_type_ids"]


class Qwen2_5_VL(Family):
    """Qwen2.5-VL (arXiv 2502.13923)."""

    model_type = "qwen2_5_vl"
    name = "Qwen2.5-VL"
    bridged = True
    videos = True
    window_advice = (
        "set use_sliding_window to false and remove layer_types in its config.json, and load it "
        "anew; answers change where a text is longer than the window"
    )

    # Loading

    def load_processor(self, folder: str | Path, **hub: Any) -> Any:
        """See ``Family``; the stock one where torchvision works, else ours."""
        processor = self._stock(folder, hub) or ImageTextProcessor.from_pretrained(folder, **hub)
        if not processor.chat_template:  # some fine-tunes keep it with the tokenizer alone
            processor.chat_template = processor.tokenizer.chat_template
        return processor

    def _stock(self, folder: str | Path, hub: dict[str, Any]) -> Any:
        """Load the stock processor; None without torchvision or without settings for videos."""
        if not is_torchvision_available():
            return None
        try:
            return self.processor_class().from_pretrained(folder, **hub)
        except (OSError, ValueError, TypeError):  # the testbed's folder has no video processor
            return None

    def pixel_limits(
        self, processor: Any, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PixelLimits:
        """See ``Family``."""
        check_pixel_limits(min_pixels, max_pixels)
        images, factor = processor.image_processor, self.area_factor(processor)
        least = images.size["shortest_edge"] // factor if min_pixels is None else min_pixels
        most = images.size["longest_edge"] // factor if max_pixels is None else max_pixels
        token = (images.patch_size * images.merge_size) ** 2
        if most < token:
            raise InputError(
                f"max_pixels={most}: a visual token takes {token} pixels, so give at least {token}"
            )
        if least > most:
            raise InputError(
                f"min_pixels={least} is more than max_pixels={most}, of which one is the "
                "checkpoint's: give both, the smaller first"
            )
        return int(least), int(most)

    def set_pixel_limits(self, processor: Any, limits: PixelLimits) -> None:
        """See ``Family``."""
        processor.image_processor.size = self._size(processor, limits)

    def area_factor(self, processor: Any) -> int:
        """Return what an image's area is multiplied by where its limits are compared."""
        return 1

    def _size(self, processor: Any, limits: PixelLimits) -> dict[str, int]:
        """Name limits as the image processors do: they are areas, despite the names."""
        factor = self.area_factor(processor)
        return {"shortest_edge": limits[0] * factor, "longest_edge": limits[1] * factor}

    def small(self, shape: Shape) -> Small:
        """See ``Family``."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        tokens = {
            "image_token": IMAGE_TOKEN,
            "video_token": VIDEO_TOKEN,
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
        ids = {f"{name}_id": token for name, token in tokens.items()}
        return Small(
            tokens=tokens,
            picture=f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>",
            video=f"<|vision_start|>{VIDEO_TOKEN}<|vision_end|>",
            images=Qwen2VLImageProcessorPil(
                size={"shortest_edge": 16 * 28**2, "longest_edge": 36 * 28**2}
            ),
            config={
                "text_config": {"rope_parameters": small_rope(shape)} | self.small_text(shape),
                "vision_config": self.small_tower(shape),
                **ids,
            },
        )

    def small_text(self, shape: Shape) -> dict[str, Any]:
        """Configure what the text model of a small model has besides its rotary positions."""
        return {}

    def small_tower(self, shape: Shape) -> dict[str, Any]:
        """Configure the vision tower of a small model."""
        return {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": shape.width,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }

    # The model

    def special_tokens(self, config: Any, tokenizer: Any) -> SpecialTokens:
        """See ``Family``."""
        return SpecialTokens(
            image=config.image_token_id,
            visual=(config.image_token_id, config.video_token_id),
            video=config.video_token_id,
            start=(config.vision_start_token_id,),
            end=(config.vision_end_token_id,),
        )

    # Prompts

    def encode(
        self, processor: Any, text: str, pictures: Sequence[Image.Image], limits: PixelLimits | None
    ) -> Inputs:
        """See ``Family``."""
        options = (
            {} if limits is None else {"images_kwargs": {"size": self._size(processor, limits)}}
        )
        encoded = processor(
            text=[text],
            images=list(pictures) or None,
            return_tensors="pt",
            padding=False,
            **options,
        )
        return dict(encoded)

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``."""
        merge = config.vision_config.spatial_merge_size
        found = [inputs[n] for n in ("image_grid_thw", "video_grid_thw") if n in inputs]
        grids = [grid for of_kind in found for grid in of_kind.tolist()]
        return [(Tile(rows // merge, columns // merge),) * t for t, rows, columns in grids]

    def frames_in_grid(self, processor: Any) -> int:
        """See ``Family``."""
        return int(processor.image_processor.temporal_patch_size)

    def encode_videos(
        self,
        processor: Any,
        text: str,
        pictures: Sequence[Image.Image],
        videos: Sequence[tuple[Sequence[Image.Image], Frames]],
        limits: tuple[int | None, int | None],
    ) -> Inputs:
        """See ``Family`` and ``frame_limits``."""
        images = processor.image_processor
        own = self.pixel_limits(processor, *limits)
        areas = [frame_limits(images, own, limits, len(frames.middles())) for _, frames in videos]
        inputs = encode_with_videos(
            processor,
            self.unwrapped(processor, text),
            pictures,
            [(*v, self._size(processor, area)) for v, area in zip(videos, areas, strict=True)],
            image_size=self._size(processor, own),
            write=lambda pairs, tokens, frames: self.video_text(processor, pairs, tokens, frames),
        )
        return inputs | self.video_times([frames.length / frames.rate for _, frames in videos])

    def unwrapped(self, processor: Any, text: str) -> str:
        """Take out of a text what the chat template puts around a video and the model does not."""
        return text

    def video_text(self, processor: Any, pairs: int, tokens: int, frames: Frames) -> str:
        """Write the placeholders of a video, with as many visual tokens in each pair of frames."""
        return str(processor.video_token) * (pairs * tokens)

    def video_times(self, seconds: Sequence[float]) -> Inputs:
        """Say how many seconds each pair of frames of a video lasts."""
        return {"second_per_grid_ts": torch.tensor(seconds)}

    # Features and positions

    def image_features(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """See ``Family``."""
        found = model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
        return torch.cat(tuple(found.pooler_output))

    def features_in(self, output: Any) -> torch.Tensor | None:
        """See ``Family``."""
        return output.pooler_output

    def rotary_positions(self, generator: Any, inputs: Inputs) -> torch.Tensor:
        """See ``Family``."""
        positions, _ = generator.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
            attention_mask=inputs["attention_mask"],
            **{name: inputs[name] for name in ("second_per_grid_ts",) if name in inputs},
        )
        return positions

    def positions_from(
        self, start: int, pieces: Sequence[int | ImagePiece]
    ) -> tuple[np.ndarray, int]:
        """See ``Family``; the rule of ``multimodal_positions``."""
        taken = (p if isinstance(p, int) else max(p.rows, p.columns) for p in pieces)
        return multimodal_positions(pieces) + start, start + sum(taken)

    def position_ids(self, slots: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """See ``Family``: a row of slots, which masks are made of, above time, height and width."""
        return torch.cat([slots.reshape(1, 1, -1), rotary.reshape(3, 1, -1)])

    def next_position(self, position_ids: torch.Tensor) -> int:
        """See ``Family``."""
        return int(position_ids[-1, 0, 0])

    def moved(self, position_ids: torch.Tensor, slots: int, rotary: int) -> torch.Tensor:
        """See ``Family``."""
        positions = position_ids.clone()
        rows = 1 if len(positions) == 4 else 0  # generate may leave the row of slots out
        positions[:rows] += slots
        positions[rows:] += rotary
        return positions


def small_rope(shape: Shape) -> dict[str, Any]:
    """Configure rotary positions in time, height and width, in the published proportion."""
    space = 3 * shape.head_dim // 16
    sections = [shape.head_dim // 2 - 2 * space, space, space]
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def multimodal_positions(pieces: Sequence[int | ImagePiece]) -> np.ndarray:
    """Positions in time, height and width of every token.

    Text advances by one in all three. A visual token is at (start, start + row,
    start + column), and what follows its image continues at start + max(rows, columns), whether
    or not all of the image's tokens are there: a token that was chosen keeps its place in the grid.
    This is the rule of Qwen2-VL (arXiv 2409.12191, section 2.1) for pictures.

    Returns int64 [3, length]: time, height, width.
    """
    start, parts = 0, []
    for piece in pieces:
        if isinstance(piece, int):
            parts.append(np.broadcast_to(np.arange(start, start + piece), (3, piece)))
            start += piece
        else:
            count = piece.rows * piece.columns
            kept = np.arange(count) if piece.kept is None else np.array(piece.kept, dtype=np.int64)
            rows, columns = np.divmod(kept, piece.columns)
            parts.append(start + np.stack([np.zeros_like(kept), rows, columns]))
            start += max(piece.rows, piece.columns)
    return np.concatenate(parts, axis=1, dtype=np.int64) if parts else np.zeros((3, 0), np.int64)


QWEN2_5_VL = Qwen2_5_VL()
