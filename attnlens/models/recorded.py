"""The pictures of a prompt, found again from what a trace notes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.images import open_image
from attnlens.models.videos import frames_at
from attnlens.stores import located

if TYPE_CHECKING:
    from PIL import Image


def recorded_image(
    record: dict[str, Any], number: int, image: Any = None, *, option: str = "image="
) -> Image.Image:
    """Open an image of a prompt.

    Parameters
    ----------
    record
        What the trace notes of it (``ImageInfo.as_dict``).
    number
        Which image of the prompt it is, for messages.
    image
        The image, as ``open_image`` takes it; None for the file that was recorded.
    option
        How the caller's user gives it, for messages.

    Raises
    ------
    InputError
        If the file is gone or changed and none is given, or the one given has another size.
    """
    if image is None:
        path = record.get("path")
        if not path:
            raise InputError(f"image {number} was not read from a file: give {option}")
        if not located(path).is_file():
            raise InputError(f"image {number} ({path!r}) is not there: give {option}")
        picture, info = open_image(path)
        if info.sha256 != record["sha256"]:
            raise InputError(
                f"image {number} ({path!r}) changed since it was recorded: give {option}"
            )
        return picture
    picture, info = open_image(image)
    if (info.width, info.height) != (record["width"], record["height"]):
        raise InputError(
            f"the image has {info.width} x {info.height} pixels: "
            f"the one recorded has {record['width']} x {record['height']}"
        )
    return picture


def recorded_frames(
    record: dict[str, Any],
    number: int,
    wanted: Sequence[int],
    video: Any = None,
    *,
    option: str = "video=",
) -> list[Image.Image]:
    """Open some frames of a video of a prompt.

    Parameters
    ----------
    record, number
        As in ``recorded_image``.
    wanted
        Places of the frames in the video.
    video
        The video, as ``vlm.prompt`` takes it; None for the one that was recorded.
    option
        How the caller's user gives it, for messages.

    Raises
    ------
    InputError
        If the video is gone or changed and none is given, or the one given has another size.
    """
    source = record.get("path") if video is None else video
    if source is None:
        raise InputError(f"video {number} was not read from a file: give {option}")
    if video is None and not located(source).exists():
        raise InputError(f"video {number} ({source!r}) is not there: give {option}")
    pictures, digest = frames_at(source, record["frames"]["indices"], wanted)
    if video is None and digest != record["sha256"]:
        raise InputError(
            f"video {number} ({source!r}) changed since it was recorded: give {option}"
        )
    size = (record["width"], record["height"])
    if pictures[0].size != size:
        raise InputError(
            f"the video has {pictures[0].width} x {pictures[0].height} pixels: "
            f"the one recorded has {size[0]} x {size[1]}"
        )
    return pictures
