"""Opening pictures, with one clear error for what cannot be used."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attnlens.errors import InputError
from attnlens.text import one_line

MAX_ASPECT_RATIO = 200
"""Qwen2-VL's image processor refuses anything longer and thinner."""


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image of a prompt.

    Attributes
    ----------
    path
        Where it was read from; None for an image that was given as an object.
    sha256
        Hash of the file's bytes, or of the pixels where there is no file.
    width, height
        Size in pixels, before the processor resizes it.
    rows, columns
        Its grid of visual tokens.
    """

    path: str | None
    sha256: str
    width: int
    height: int
    rows: int = 0
    columns: int = 0

    def boxes(self) -> np.ndarray:
        """Pixel box of each visual token in the original image.

        Returns
        -------
        numpy.ndarray
            float64 [rows * columns, 4]: left, top, right, bottom, in reading order.
        """
        x = np.linspace(0, self.width, self.columns + 1)
        y = np.linspace(0, self.height, self.rows + 1)
        left, top = np.meshgrid(x[:-1], y[:-1])
        right, bottom = np.meshgrid(x[1:], y[1:])
        return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)


def open_image(source: Any) -> tuple[Image.Image, ImageInfo]:
    """Open a picture and make it RGB.

    Parameters
    ----------
    source
        A path or a ``PIL.Image.Image``. Transparent parts are laid on white. Greys of 16 bits are
        scaled to 8; so are whole-number pixels (mode ``I``) where one of them is beyond 255.

    Raises
    ------
    InputError
        If there is no such file, it is no picture or a damaged one, or its aspect ratio is beyond
        what the image processor takes.
    """
    if isinstance(source, Image.Image):
        image, path = _upright(source, "the image"), None
        digest = hashlib.sha256(f"{source.mode} {source.size}".encode() + source.tobytes())
    elif isinstance(source, str | Path):
        image, path = _read(Path(source)), str(source)
        digest = hashlib.sha256(Path(source).read_bytes())
    else:
        raise InputError(
            f"an image is given as {type(source).__name__}: give a path or a PIL.Image"
        )
    width, height = image.size
    named = path or "the image"
    if min(width, height) == 0 or max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        raise InputError(
            f"{named} is {width} x {height} pixels: "
            f"give an image whose sides differ by a factor of at most {MAX_ASPECT_RATIO}"
        )
    return _as_rgb(image), ImageInfo(path, digest.hexdigest(), width, height)


def _read(path: Path) -> Image.Image:
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise InputError(f"there is no image at {str(path)!r}: give the path of a picture")
    if not os.path.isfile(path):
        raise InputError(f"{str(path)!r} is not a file: give the path of a picture")
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{str(path)!r} is not a picture that can be read: give a PNG, JPEG or WebP file"
        ) from error
    except Exception as error:  # decoders of damaged files raise errors of all kinds
        raise _unreadable(repr(str(path)), error) from error
    return _upright(image, repr(str(path)))


def _upright(image: Image.Image, named: str) -> Image.Image:
    """Decode a picture, and turn it as its EXIF block says, as a viewer shows it."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as above
        raise _unreadable(named, error) from error


def _unreadable(named: str, error: Exception) -> InputError:
    reason = one_line(str(error)) or type(error).__name__
    return InputError(f"{named} cannot be read as a picture ({reason})")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _grey_of_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def plain_picture(image: Image.Image) -> Image.Image:
    """Make an RGB picture of the same size in the picture's mean colour."""
    mean = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0).round().astype(int)
    return Image.new("RGB", image.size, tuple(int(c) for c in mean))


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0 to 65,535 to 0 to 255, where Pillow's own conversion cuts all above 255 to white."""
    values = np.asarray(image)
    if image.mode == "I" and values.max() <= 255:
        return image
    grey = np.round(values.clip(0, 65535) / 257).astype(np.uint8)
    if "transparency" in image.info:  # one grey, which is as if it were not there
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
