"""Opening videos: a file, a folder of frames, or the frames themselves."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnlens.errors import InputError
from attnlens.models.images import Frames, ImageInfo, open_image
from attnlens.stores import is_store, located, plain_path
from attnlens.text import one_line, quoted, shortened

FPS = 2.0
"""Frames shown of a second, as Qwen's own code has it (qwen-vl-utils)."""
MIN_FRAMES, MAX_FRAMES = 4, 768
"""Fewest and most frames that Qwen's own code shows of a video that has as many."""
UNEVEN = 1.5
"""Frames are evenly spaced where the longest gap is at most so many times the shortest."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files that are frames in a folder."""


@dataclass(frozen=True)
class Video:
    """A video to be opened.

    Attributes
    ----------
    source
        Path of a file or of a folder of frames, a list of pictures, or an array of uint8 [frames,
        height, width, 3].
    fps
        Of a file: how many frames of each second are shown. Of frames: how many of them make a
        second. 2 when None.
    max_frames
        Most frames that are shown; 768 when None.
    """

    source: Any
    fps: float | None = None
    max_frames: int | None = None


def check_sampling(fps: float | None, max_frames: int | None) -> None:
    """Refuse numbers by which no frames can be chosen.

    Raises
    ------
    InputError
        If ``fps`` is not a number above 0, or ``max_frames`` not a whole number of at least 2.
    """
    number = isinstance(fps, int | float | np.number) and not isinstance(fps, bool)
    if fps is not None and (not number or not 0 < fps < math.inf):
        raise InputError(f"fps={fps!r}: give a number of frames a second above 0")
    whole = isinstance(max_frames, int | np.integer) and not isinstance(max_frames, bool)
    if max_frames is not None and (not whole or max_frames < 2):
        raise InputError(f"max_frames={max_frames!r}: give a whole number of at least 2")


def open_video(video: Video, *, first_only: bool = False) -> tuple[list[Image.Image], ImageInfo]:
    """Open the frames that are shown of a video.

    A file needs PyAV (``pip install 'attnlens[video]'``). Its frames are chosen as Qwen's own code
    does (qwen-vl-utils): evenly from first to last, ``fps`` for each second but at least 4 and at
    most ``max_frames``, an even number; where its frames are unevenly spaced, by time. Frames that
    are given are all shown, unless they are more than ``max_frames``. Memory: 3 bytes a pixel of
    each frame that is shown, and what the image processor makes of it.

    Parameters
    ----------
    video
        What to open. Pictures are whatever ``open_image`` takes; the files of a folder (PNG, JPEG,
        WebP, BMP, TIFF; hidden ones are left out) are sorted by name, numbers by value. Nothing is
        fetched from the network.
    first_only
        Return only the first frame, to see whether the video can be read.

    Returns
    -------
    tuple
        The frames, RGB, and facts about the video, ``frames`` among them.

    Raises
    ------
    InputError
        If there is no such file or folder, it holds no frames or damaged ones, frames differ in
        size, PyAV is missing, or a number of ``video`` cannot hold.
    """
    check_sampling(video.fps, video.max_frames)
    fps, most = float(video.fps or FPS), int(video.max_frames or MAX_FRAMES)
    source = _located(video.source)
    places = slice(1 if first_only else None)
    if _is_file(source):
        with _decoding(source) as av:
            stamps, unit = _stamps(av, source)
            frames = _chosen((np.array(stamps) - stamps[0]) * unit, fps, most)
            pictures = _decode(av, source, [stamps[i] for i in frames.indices[places]])
            digest = _digest(source)
    else:
        listed = _listed(source)
        shown = _spread(len(listed), min(len(listed), most))
        seconds = tuple(i / fps for i in shown)
        frames = Frames(tuple(shown), seconds, fps * len(shown) / len(listed))
        pictures, digest = _open_listed(listed, shown, shown[places])
    path = source if isinstance(source, str) else None
    return pictures, ImageInfo(path, digest, *pictures[0].size, frames=frames)


def _chosen(seconds: np.ndarray, fps: float, most: int) -> Frames:
    """Choose frames of a file, of which all times are known.

    Where they are evenly spaced, by their places, as qwen-vl-utils does. Else by time: models take
    the frames they see to be evenly spaced, so that one that lasts long is shown several times.
    """
    total = len(seconds)
    gaps = np.diff(seconds)
    even = not gaps.size or gaps.max() <= UNEVEN * gaps.min()
    rate = (total - 1) / seconds[-1] if total > 1 else fps
    count = min(max(total / rate * fps, MIN_FRAMES), most)
    if even:
        count = max(int(min(count, total)) // 2 * 2, 1)
        shown = _spread(total, count)
        return Frames(tuple(shown), tuple(seconds[shown].tolist()), float(rate * count / total))
    when = np.linspace(0, seconds[-1], int(count) // 2 * 2)
    places = np.searchsorted(seconds, when + 1e-6, side="right") - 1
    return Frames(
        tuple(places.tolist()), tuple(when.tolist()), float((len(when) - 1) / seconds[-1])
    )


def frames_at(
    source: Any, shown: Sequence[int], wanted: Sequence[int]
) -> tuple[list[Image.Image], str]:
    """Open some frames of those that are shown.

    Parameters
    ----------
    source
        As in ``Video``.
    shown, wanted
        Places in the video of the frames that are shown, and of those to return.

    Returns
    -------
    tuple
        The pictures, and the hash of the file, or of the hashes of all frames that are shown.

    Raises
    ------
    InputError
        As ``open_video``.
    """
    source = _located(source)
    if _is_file(source):
        with _decoding(source) as av:
            stamps, _ = _stamps(av, source)
        _check_places(shown, len(stamps))
        with _decoding(source) as av:
            return _decode(av, source, [stamps[i] for i in wanted]), _digest(source)
    listed = _listed(source)
    _check_places(shown, len(listed))
    return _open_listed(listed, shown, wanted)


def _open_listed(
    listed: Sequence[Any], shown: Sequence[int], wanted: Sequence[int]
) -> tuple[list[Image.Image], str]:
    """Do as ``frames_at`` for frames that are there one by one."""
    kept: dict[int, Image.Image] = {}
    digest, size = hashlib.sha256(), None
    for number in shown:
        picture, info = open_image(listed[number])
        size = size or picture.size
        if picture.size != size:
            raise InputError(
                f"frame {number} is {info.width} x {info.height} pixels, and frame {shown[0]} "
                f"{size[0]} x {size[1]}: give frames of one size"
            )
        digest.update(info.sha256.encode())
        if number in wanted:
            kept[number] = picture
    return [kept[number] for number in wanted], digest.hexdigest()


def _located(source: Any) -> Any:
    """Turn a path or a ``file://`` URL into a path, and leave frames as they are."""
    if not isinstance(source, str | Path):
        return source
    if not str(source).strip():
        raise InputError("the path of the video is empty: give that of a file or a folder")
    if is_store(located(source)):
        raise InputError(
            f"{quoted(source)} is in an object store, from which pictures are read, but no videos: "
            "download it and give its path"
        )
    return plain_path(source)


def _check_places(shown: Sequence[int], total: int) -> None:
    if max(shown) >= total:
        raise InputError(f"the video has {total} frames: there is no frame {max(shown)}")


def _is_file(source: Any) -> bool:
    return isinstance(source, str) and not Path(source).is_dir()


def _listed(source: Any) -> Sequence[Any]:
    """Return what is to be opened as frames, in order."""
    if isinstance(source, str):
        found = [
            path
            for path in Path(source).iterdir()
            if path.suffix.lower() in PICTURES and path.name[0] != "." and path.is_file()
        ]
        if not found:
            raise InputError(
                f"{quoted(source)} holds no frames: give a folder of PNG, JPEG or WebP files"
            )
        return sorted(found, key=_natural)
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if not isinstance(source, Sequence) or isinstance(source, bytes | bytearray):
        raise InputError(
            f"a video is given as {type(source).__name__}: give the path of a file or of a folder "
            "of frames, a list of pictures, or an array of uint8 of shape frames x height x width "
            "x 3"
        )
    if not source:
        raise InputError("the list of frames is empty: give at least one picture")
    return source


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort ``frame_10`` after ``frame_9``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]


def _spread(total: int, count: int) -> list[int]:
    """Choose places evenly, the first and the last among them."""
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


@contextmanager
def _decoding(path: str) -> Iterator[Any]:
    """Give PyAV, and turn the errors of decoding a file into one that names it."""
    named = quoted(path)
    if not Path(path).is_file():
        raise InputError(
            f"there is no video at {named}: give the path of a file or of a folder of frames"
        )
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{named} needs PyAV to be decoded, which cannot be imported ({error}): run "
            "pip install 'attnlens[video]', or give a folder of frames"
        ) from error
    try:
        yield av
    except Exception as error:  # decoders of damaged files raise errors of all kinds
        reason = shortened(one_line(str(error)), 200) or type(error).__name__
        raise InputError(
            f"{named} cannot be read as a video ({reason}): give a video file or a folder of frames"
        ) from error


def _digest(path: str) -> str:
    """Hash a file without holding it."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _stamps(av: Any, path: str) -> tuple[list[int], float]:
    """Time stamps of all frames in order, and their unit in seconds."""
    with _opened(av, path) as container:
        if not container.streams.video:
            raise ValueError("it has no pictures")
        if container.format.name.endswith(("_pipe", "image2")):
            raise ValueError("it is a picture, which is given as an image")
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.pts is not None]
        # an edit list leaves frames out that are in the file
        lasting = {p.pts: p.duration or 0 for p in packets if not p.is_discard}
        stamps = sorted(lasting)
        if not stamps or stream.time_base is None:
            raise ValueError("it has no frames")
        if len(stamps) < sum(not p.is_discard for p in packets):
            raise ValueError("two of its frames have the same time")
        unit = float(stream.time_base)
        stated = float(stream.duration or 0) * unit
        if not stated and not container.streams.audio:  # sound may last longer
            stated = (container.duration or 0) / av.time_base
        last = stamps[-1] + max(lasting[stamps[-1]], _gap(stamps))
        end = (last - stamps[0]) * unit
        if stated > 1.05 * end + 2 * _gap(stamps) * unit:
            raise ValueError(f"it ends after {end:.2f} of {stated:.2f} seconds")
        return stamps, unit


def _gap(stamps: Sequence[int]) -> float:
    """Mean time between frames, in the unit of their stamps."""
    return (stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1)


def _decode(av: Any, path: str, wanted: Sequence[int]) -> list[Image.Image]:
    """Decode the frames with some time stamps, turned as the file says."""
    found: dict[int, Image.Image] = {}
    missing, before, size = set(wanted), None, None
    with _opened(av, path) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        for frame in container.decode(video=0):
            if frame.is_corrupt:
                raise ValueError("it has a damaged frame")
            if frame.pts is None or (before is not None and frame.pts <= before):
                raise ValueError(
                    "its frames have no times in order, as AVI may not: make it an MP4"
                )
            before = frame.pts
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise ValueError("its frames differ in size")
            if frame.pts in missing:
                picture = frame.to_image()
                turn = getattr(frame, "rotation", 0)
                found[frame.pts] = picture.rotate(turn, expand=True) if turn else picture
                missing.discard(frame.pts)
                if not missing:
                    break
    if missing:
        raise ValueError(f"{len(missing)} of {len(wanted)} frames cannot be decoded")
    return [found[stamp] for stamp in wanted]


@contextmanager
def _opened(av: Any, path: str) -> Iterator[Any]:
    """Open a file; what it may refer to elsewhere is not followed."""
    with (
        open(path, "rb") as file,
        av.open(file, options={"protocol_whitelist": "none"}) as container,
    ):
        yield container
