"""The Qwen2.5-VL processor, with and without torchvision.

The stock processor insists on a video processor, and that on torchvision. ``ImageTextProcessor``
is the stock processor without videos: it reads the same folders and Hub layouts, and needs Pillow
alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import ProcessorMixin
from transformers.processing_utils import ProcessingKwargs
from transformers.utils import is_torchvision_available

from attnlens.errors import InputError

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
        """Spell the placeholder of one image out, one token for each visual token."""
        visual = image_inputs["image_grid_thw"][image_idx].prod()
        return self.image_token * int(visual // self.image_processor.merge_size**2)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return [*super().model_input_names, "mm_token_type_ids"]


def pixel_limits(
    processor: Any, min_pixels: int | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """Limits of an image's area after resizing, in pixels.

    Parameters
    ----------
    processor
        The processor, whose own limits stand where none is given.
    min_pixels, max_pixels
        The limits asked for.

    Raises
    ------
    InputError
        If one is no whole number, no visual token fits, or the smaller one is larger.
    """
    images = processor.image_processor
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise InputError(f"{name}={value!r}: give a whole number of pixels of at least 1")
    least = images.size["shortest_edge"] if min_pixels is None else min_pixels
    most = images.size["longest_edge"] if max_pixels is None else max_pixels
    token = (images.patch_size * images.merge_size) ** 2
    if most < token:
        raise InputError(
            f"max_pixels={most}: a visual token takes {token} pixels, so give at least {token}"
        )
    if least > most:
        both = "" if None not in (min_pixels, max_pixels) else ", of which one is the checkpoint's"
        raise InputError(
            f"min_pixels={least} is more than max_pixels={most}{both}: give both, the smaller first"
        )
    return int(least), int(most)


def size_of(limits: tuple[int, int]) -> dict[str, int]:
    """Write limits of pixels as Qwen2-VL's image processors name them: areas, despite the names."""
    return {"shortest_edge": limits[0], "longest_edge": limits[1]}


def load_processor(folder: str | Path, **hub: Any) -> Any:
    """Load the processor of a checkpoint: the stock one where torchvision works, else ours.

    Parameters
    ----------
    folder
        A folder or a Hub name.
    hub
        Passed on to ``from_pretrained`` (revision, token, cache folder).
    """
    processor = _stock(folder, hub) or ImageTextProcessor.from_pretrained(folder, **hub)
    if not processor.chat_template:  # some fine-tunes keep it with the tokenizer alone
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def _stock(folder: str | Path, hub: dict[str, Any]) -> Any:
    """Load the stock processor; None without torchvision or without settings for videos."""
    if not is_torchvision_available():
        return None
    from transformers import Qwen2_5_VLProcessor

    try:
        return Qwen2_5_VLProcessor.from_pretrained(folder, **hub)
    except (OSError, ValueError, TypeError):  # the testbed's folder has no video processor
        return None
