"""Videos of Qwen's models: pairs of frames, encoded by the image processor.

The stock video processor needs torchvision. The image processor makes the same patches of single
frames, each of which it repeats to the length of a patch in time; here every frame takes its own
place in that length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from attnlens.models.family import Inputs, PixelLimits
from attnlens.models.images import Frames

FRAME_TOKENS = (128, 768)
"""Fewest and most visual tokens of a frame in Qwen's own code (qwen-vl-utils)."""
ALL_TOKENS = int(128_000 * 0.9)
"""Most visual tokens of a video there."""

VideoText = Callable[[int, int, Frames], str]
"""Writes a video: numbers of pairs of frames and of visual tokens in each, and the frames."""


def frame_limits(
    images: Any, own: PixelLimits, asked: tuple[int | None, int | None], pairs: int
) -> PixelLimits:
    """Return the smallest and largest area of a frame after resizing.

    Parameters
    ----------
    images
        The image processor.
    own
        Limits of an image's area, which are kept to as well.
    asked
        Limits that the user gave; where None, those of qwen-vl-utils: 128 to 768 visual tokens,
        and less in long videos.
    pairs
        Number of pairs of frames.
    """
    token = (images.patch_size * images.merge_size) ** 2
    least, most = (tokens * token for tokens in FRAME_TOKENS)
    most = max(min(most, ALL_TOKENS * token // pairs), int(least * 1.05))
    least, most = max(least, own[0]), min(most, own[1])
    if asked[0] is not None:
        least, most = asked[0], max(most, asked[0])
    if asked[1] is not None:
        most = asked[1]
    return min(least, most), most


def encode_frames(
    images: Any, frames: Sequence[Image.Image], size: dict[str, int]
) -> tuple[torch.Tensor, list[int]]:
    """Return the patches of a video, and its grid: pairs of frames, rows and columns of patches.

    An odd number of frames is filled up with the last one.
    """
    length = images.temporal_patch_size
    filled = [*frames, *[frames[-1]] * (-len(frames) % length)]
    parts = []
    for start in range(0, len(filled), length):
        encoded = images(filled[start : start + length], return_tensors="pt", size=size)
        patches, (_, rows, columns) = encoded["pixel_values"], encoded["image_grid_thw"][0].tolist()
        width = patches.shape[-1]
        # frames of a pair, patches, channels, places in time, pixels
        patches = patches.reshape(length, rows * columns, 3, length, width // (3 * length))
        own = torch.stack([patches[i, :, :, i] for i in range(length)], dim=2)
        parts.append(own.reshape(-1, width))
    return torch.cat(parts), [len(parts), rows, columns]


def encode_with_videos(
    processor: Any,
    text: str,
    pictures: Sequence[Image.Image],
    videos: Sequence[tuple[Sequence[Image.Image], Frames, dict[str, int]]],
    *,
    image_size: dict[str, int],
    write: VideoText,
) -> Inputs:
    """Turn a text with a placeholder for each picture and video into inputs.

    The stock processors refuse placeholders of videos that they have not made themselves.

    Parameters
    ----------
    processor
        The family's processor.
    text
        What the chat template writes.
    pictures
        The pictures, RGB.
    videos
        Frames, RGB, what is known of them, and the limits of their size.
    image_size
        Limits of the size of pictures.
    write
        Writes the placeholders of a video.
    """
    images = processor.image_processor
    inputs: Inputs = {}
    written = []
    if pictures:
        found = images(list(pictures), return_tensors="pt", size=image_size)
        inputs |= dict(found)
        written = [processor.replace_image_token(found, i) for i in range(len(pictures))]
    encoded = [encode_frames(images, frames, size) for frames, _, size in videos]
    inputs["pixel_values_videos"] = torch.cat([patches for patches, _ in encoded])
    inputs["video_grid_thw"] = torch.tensor([grid for _, grid in encoded])
    films = [
        write(pairs, rows * columns // images.merge_size**2, frames)
        for (_, (pairs, rows, columns)), (_, frames, _) in zip(encoded, videos, strict=True)
    ]
    of_kind = {processor.image_token: iter(written), processor.video_token: iter(films)}
    whole = re.sub("|".join(map(re.escape, of_kind)), lambda m: next(of_kind[m[0]]), text)
    tokens = processor.tokenizer([whole], return_tensors="pt", padding=False)
    ids = tokens["input_ids"]
    kinds = (ids == processor.image_token_id) + 2 * (ids == processor.video_token_id)
    return {
        "input_ids": ids,
        "attention_mask": tokens["attention_mask"],
        "mm_token_type_ids": kinds,
    } | inputs
