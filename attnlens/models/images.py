"""Opening pictures, with one clear error for each that cannot be used."""

from __future__ import annotations

import base64
import hashlib
import math
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attnlens.errors import InputError
from attnlens.stores import is_store, located, plain_path, reaching, read_bytes
from attnlens.text import LONGEST_PATH, one_line, quoted, shortened

MAX_ASPECT_RATIO = 200
"""Qwen2-VL's image processor refuses anything longer and thinner."""
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF, and the value of the second under which 0 is white."""


def check_pixel_limits(min_pixels: int | None, max_pixels: int | None) -> None:
    """Refuse limits of an image's area that no checkpoint could hold.

    Raises
    ------
    InputError
        If one is not a whole number of at least 1, or the smaller one is larger.
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise InputError(f"{name}={value!r}: give a whole number of pixels of at least 1")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise InputError(
            f"min_pixels={min_pixels} is more than max_pixels={max_pixels}: give both, the smaller "
            "first"
        )


@dataclass(frozen=True)
class Tile:
    """A grid of visual tokens: an image, or a part of it that is encoded by itself.

    Attributes
    ----------
    rows, columns
        Its visual tokens, in reading order.
    box
        Left, top, right and bottom of what it shows, as fractions of the image, beyond 0 and 1
        where the image was padded; None where it is not known.
    newlines
        Whether each row ends in one more visual token, which shows nothing.
    """

    rows: int
    columns: int
    box: tuple[float, float, float, float] | None = (0.0, 0.0, 1.0, 1.0)
    newlines: bool = False

    @property
    def count(self) -> int:
        """Number of visual tokens."""
        return self.rows * (self.columns + self.newlines)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each visual token, int64; column -1 for the end of a row."""
        row, column = np.divmod(np.arange(self.count), self.columns + self.newlines)
        return row, np.where(column == self.columns, -1, column)


@dataclass(frozen=True)
class Frames:
    """Which frames of a video are shown.

    Attributes
    ----------
    indices
        Their places in the video, counted from 0.
    seconds
        When each is shown, from the first frame of the video on.
    rate
        How many are shown of a second.
    length
        How many of them, one after the other, make one grid of visual tokens. The last one fills
        up the last grid.
    """

    indices: tuple[int, ...]
    seconds: tuple[float, ...]
    rate: float
    length: int = 1

    def middles(self) -> list[float]:
        """Time of each grid: the mean of that of its first and its last frame."""
        last = len(self.seconds) - 1
        return [
            (self.seconds[i] + self.seconds[min(i + self.length - 1, last)]) / 2
            for i in range(0, len(self.seconds), self.length)
        ]


@dataclass(frozen=True)
class ImageInfo:
    """Facts about an image or a video of a prompt.

    Attributes
    ----------
    path
        Where it was read from; None for an image given as an object or as bytes.
    sha256
        Hash of the file's bytes, or of the RGB pixels where there is no file; of frames, the hash
        of their hashes.
    width, height
        Size in pixels, before the processor resizes it.
    rows, columns
        Its grid of visual tokens. The processor resized it to this many times the pixels of a
        visual token (28 each way in Qwen2.5-VL). An image of several tiles, or with tokens at the
        ends of rows, counts as one row of all its visual tokens.
    min_pixels, max_pixels
        The limits of its area at resizing; None where they are not known, or there are none.
    tiles
        Its grids of visual tokens, in the order of the sequence. One of a video shows the next
        frames (two in Qwen's models).
    frames
        The frames of a video; None for an image.
    """

    path: str | None
    sha256: str
    width: int
    height: int
    rows: int = 0
    columns: int = 0
    min_pixels: int | None = None
    max_pixels: int | None = None
    tiles: tuple[Tile, ...] = ()
    frames: Frames | None = None

    def in_tiles(self, tiles: Sequence[Tile]) -> ImageInfo:
        """Return the same image with its grids of visual tokens."""
        single = len(tiles) == 1 and not tiles[0].newlines
        count = sum(tile.count for tile in tiles)
        rows, columns = (tiles[0].rows, tiles[0].columns) if single else (1, count)
        return replace(self, rows=rows, columns=columns, tiles=tuple(tiles))

    def places(self) -> np.ndarray:
        """Tile, row and column of each visual token.

        Returns
        -------
        numpy.ndarray
            int64 [3, visual tokens]; column -1 for a token at the end of a row. None where the
            tiles are not known.
        """
        found = [
            (np.full(tile.count, number), *tile.places()) for number, tile in enumerate(self.tiles)
        ]
        none = np.zeros((3, 0), np.int64)
        return np.concatenate([none, *map(np.array, found)], axis=1, dtype=np.int64)

    def boxes(self) -> np.ndarray:
        """Pixel box of each visual token in the original image.

        Returns
        -------
        numpy.ndarray
            float64 [visual tokens, 4]: left, top, right, bottom, in the order of the sequence; NaN
            for a token that shows nothing of the image.
        """
        found = []
        for tile in self.tiles:
            if tile.box is None:
                found.append(np.full((tile.count, 4), np.nan))
                continue
            left, top, right, bottom = tile.box
            x = np.linspace(left * self.width, right * self.width, tile.columns + 1)
            y = np.linspace(top * self.height, bottom * self.height, tile.rows + 1)
            row, column = tile.places()
            ends = [self.width, self.height] * 2
            boxes = np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=-1)
            boxes = boxes.clip(0, ends)
            empty = (boxes[:, :2] >= boxes[:, 2:]).any(1) | (column < 0)
            found.append(np.where(empty[:, None], np.nan, boxes))
        return np.concatenate(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; tiles only where rows and columns do not say it all."""
        values = asdict(self)
        if all(tile == Tile(self.rows, self.columns) for tile in self.tiles):
            del values["tiles"]
        if self.frames is None:
            del values["frames"]
        else:  # as they come back from a file
            for name in ("indices", "seconds"):
                values["frames"][name] = list(values["frames"][name])
        return values


def open_image(source: Any) -> tuple[Image.Image, ImageInfo]:
    """Open a picture and make it RGB of 8 bits.

    A picture is turned as its EXIF block says. An animation gives its first frame, or the current
    frame of an opened picture. What is white follows from the kind of file or array alone, never
    from the values in it:

    - 8 bits (and 1, palettes, CMYK, YCbCr, LAB, HSV): as Pillow converts them, without colour
      profiles;
    - greys of 16 bits (modes ``I;16...``, uint16 arrays): 65,535 is white, so that value v becomes
      v / 257, rounded (in a TIFF of 12 bits, 4,095 is white);
    - whole numbers of 32 bits and floats (modes ``I`` and ``F``) define no white. They are taken
      as they are where all are whole numbers from 0 to 255 (of floats, one above 1), and refused
      otherwise;
    - transparent parts are laid on white: colour x opacity + 255 x (1 - opacity).

    Parameters
    ----------
    source
        A path, a ``file://`` or ``data:`` URL, the bytes of a file, an open binary file, a
        ``PIL.Image.Image``, or an array of uint8 [height, width], [height, width, 3] (RGB) or
        [height, width, 4] (RGBA), or of uint16 [height, width]. A URL of an object store, such as
        ``s3://bucket/picture.png``, is read through fsspec; nothing is fetched from the web.

    Raises
    ------
    InputError
        If there is no such file, it is no picture or a damaged one, its values have no white, or
        its aspect ratio is beyond what the image processor takes.
    """
    path, content = None, None
    if isinstance(source, np.ndarray):
        image, named = _from_array(source), "the image"
    elif isinstance(source, Image.Image):
        image, named = source, "the image"
    else:
        path, content, named = _content(source)
        with _reading(named):
            image = Image.open(BytesIO(content))
    ends = _black_and_white(image)  # a copy no longer knows its file
    with _reading(named):
        image.load()
        image = _as_rgb(ImageOps.exif_transpose(image), ends, named)
    width, height = image.size
    if min(width, height) == 0 or max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        raise InputError(
            f"{named} is {width} x {height} pixels: "
            f"give an image whose sides differ by a factor of at most {MAX_ASPECT_RATIO}"
        )
    if content is None:
        content = f"{image.mode} {image.size}".encode() + image.tobytes()
    return image, ImageInfo(path, hashlib.sha256(content).hexdigest(), width, height)


def open_resized(
    source: str, min_pixels: int | None, max_pixels: int | None
) -> tuple[Image.Image, ImageInfo]:
    """Open a picture's file and resize it to limits of its area, as Look-Back's evaluation does.

    Its ``load_image`` (``eval/utils/processing.py`` of https://github.com/ruiz-nju/Look-Back)
    neither turns the picture as its EXIF block says nor lays transparent parts on white, and cuts
    sides to whole pixels. The facts are those of the file. Raises as ``open_image``.
    """
    path = plain_path(source)
    with _reading(quoted(path)):
        image = Image.open(BytesIO(_read(located(path)))).convert("RGB")
    info = replace(open_image(source)[1], width=image.width, height=image.height)
    for limit, outside in ((max_pixels, operator.gt), (min_pixels, operator.lt)):
        area = image.width * image.height
        if limit is not None and outside(area, limit):
            factor = math.sqrt(limit / area)
            image = image.resize((int(image.width * factor), int(image.height * factor)))
    return image, info


def _content(source: Any) -> tuple[str | None, bytes, str]:
    """Return path (where there is one) and bytes of a picture's file, and its name in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return None, bytes(source), f"the image of {len(source):,} bytes"
    if hasattr(source, "read"):
        with _reading("the image"):
            if source.seekable():  # what was just written is read from its start, as Pillow does
                source.seek(0)
            content = source.read()
        if not isinstance(content, bytes):
            raise InputError("an image is given as a file of text: open it in mode 'rb'")
        return None, content, f"the image of {len(content):,} bytes"
    if not isinstance(source, str | Path) and not is_store(source):
        raise InputError(
            f"an image is given as {type(source).__name__}: give a path, bytes, a PIL.Image or an "
            "array of uint8"
        )
    if isinstance(source, str) and source[:5].lower() == "data:":
        content = data_of_url(source)
        return None, content, f"the image of {len(content):,} bytes"
    path = plain_path(source)
    return path, _read(located(source)), quoted(path)


def data_of_url(url: str) -> bytes:
    """Decode a ``data:`` URL (RFC 2397), or raise ``InputError``."""
    header, comma, body = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        content = unquote_to_bytes(body)
        if header.strip().lower().endswith(";base64"):
            content = base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError as error:
        raise InputError(
            f"{quoted(url)} holds no picture ({error}): "
            "give 'data:image/png;base64,' and the file's bytes in base64"
        ) from error
    return content


def _read(path: Path) -> bytes:
    if is_store(path):
        with reaching(path):
            return read_bytes(path)
    if not os.path.exists(path):  # unlike Path.exists, never raises
        advice = "give the path of a picture"
        if len(str(path)) > LONGEST_PATH:
            advice += ", or base64 as 'data:image/png;base64,...'"
        raise InputError(f"there is no image at {quoted(path)}: {advice}")
    if not os.path.isfile(path):
        raise InputError(f"{quoted(path)} is not a file: give the path of a picture")
    with _reading(quoted(path)):
        return path.read_bytes()


@contextmanager
def _reading(named: str) -> Iterator[None]:
    """Turn the errors of reading a picture into one that names it."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{named} is not a picture that can be read: give a PNG, JPEG or WebP file"
        ) from error
    except Exception as error:  # decoders of damaged files raise errors of all kinds
        reason = shortened(one_line(str(error)), 200) or type(error).__name__
        raise InputError(f"{named} cannot be read as a picture ({reason})") from error


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    grey, colour = values.ndim == 2, values.ndim == 3 and values.shape[2] in (3, 4)
    of_16_bits = values.dtype.kind == "u" and values.dtype.itemsize == 2
    if not (values.dtype == np.uint8 and (grey or colour)) and not (of_16_bits and grey):
        shape = " x ".join(map(str, values.shape))
        raise InputError(
            f"an image is given as ndarray of {values.dtype} and shape {shape}: scale it to 0 to "
            "255 and give uint8 of shape height x width, height x width x 3 (RGB) or x 4 (RGBA)"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def _black_and_white(image: Image.Image) -> tuple[int, int] | None:
    """Return the values of black and white that the kind of picture implies, where it does."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        bits = tags.get(BITS_PER_SAMPLE, 16)
        most = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
        return (most, 0) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0, most)
    if image.mode == "I" and image.format == "PPM":  # Pillow has scaled it to 16 bits
        return 0, 65535
    return None


def _as_rgb(image: Image.Image, ends: tuple[int, int] | None, named: str) -> Image.Image:
    if image.mode[0] in "IF":
        image = _grey(image, ends, named)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, ends: tuple[int, int] | None, named: str) -> Image.Image:
    """Scale greys of more than 8 bits to 8; Pillow's own conversion would cut them off at 255."""
    values = np.asarray(image)
    if ends is not None:
        black, white = ends
        scaled = (values.astype(np.float32) - black) / (white - black) * 255
        grey = np.round(scaled.clip(0, 255)).astype(np.uint8)
        if "transparency" in image.info:  # one grey that is transparent
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey)
    if values.size:
        if np.isnan(values).any():
            raise InputError(f"{named} has values that are not numbers (NaN): replace them first")
        least, most = values.min(), values.max()
        whole = least >= 0 and most <= 255 and (values == np.round(values)).all()
        if not whole or (image.mode == "F" and 0 < most <= 1):
            raise InputError(
                f"{named} has values of 32 bits from {least:g} to {most:g} (mode {image.mode}), of "
                "which nothing says what is white: give "
                "(values / white * 255).clip(0, 255).astype('uint8') with your own white"
            )
    return Image.fromarray(values.astype(np.uint8))


def plain_picture(image: Image.Image) -> Image.Image:
    """Make an RGB picture of the same size in the picture's mean colour."""
    mean = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0).round().astype(int)
    return Image.new("RGB", image.size, tuple(int(c) for c in mean))
