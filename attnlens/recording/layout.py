"""Which key belongs to which segment: the keys of the prompt, and those inserted later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.segments import PADDING, PROMPT_SEGMENTS, SEGMENTS


@dataclass(frozen=True)
class KeyLayout:
    """The columns that attention mass is summed into.

    A column is a segment, except that every image has a visual column to itself.

    Attributes
    ----------
    segments
        str [batch, prompt keys]: the segment of every prompt key; ``padding`` for left padding.
    image
        int64 [batch, prompt keys]: which image (counted from 0) a visual key belongs to; -1 else.
    columns
        int64 [batch, prompt keys]: column of every prompt key; -1 for padding.
    names
        The segment of each column.
    column_image
        The image of each column; -1 for columns that are not visual.
    visual_slots
        int64 [batch, visual]: slots of the visual keys, filled up with -1.
    """

    segments: np.ndarray
    image: np.ndarray
    columns: np.ndarray
    names: tuple[str, ...]
    column_image: tuple[int, ...]
    visual_slots: np.ndarray

    @property
    def batch(self) -> int:
        """Number of prompts."""
        return self.segments.shape[0]

    @property
    def prompt_length(self) -> int:
        """Number of prompt keys, padding included."""
        return self.segments.shape[1]

    @property
    def response_column(self) -> int:
        """Column of generated tokens."""
        return self.names.index("response")


def key_layout(segments: Any, image: np.ndarray | None = None) -> KeyLayout:
    """Build the layout from one segment name per prompt key.

    Parameters
    ----------
    segments
        Names from ``attnlens.segments.PROMPT_SEGMENTS``: a sequence for one prompt, or a list of
        equally long sequences for a batch, with ``padding`` for the keys that pad on the left.
        ``visual:0``, ``visual:1`` and so on say which image a visual key belongs to.
    image
        int [batch, keys]: which image each visual key belongs to; by default the names say it, or
        every run of visual keys is an image.

    Raises
    ------
    InputError
        If there is no key, a name is unknown, rows differ in length, there is padding between
        other keys, or only some visual keys say their image.
    """
    try:
        names = np.atleast_2d(np.asarray(segments, dtype=str))
    except ValueError as error:
        raise InputError(
            "the segments of a batch differ in length: pad shorter prompts on the left with "
            f"{PADDING!r}"
        ) from error
    if names.ndim != 2 or names.shape[1] == 0:
        raise InputError("no segments were given: give one segment name per prompt key")
    if image is None:
        names, image = _split_items(names)
    unknown = sorted(set(names.ravel()) - {*PROMPT_SEGMENTS, PADDING})
    if unknown:
        raise InputError(
            f"unknown segment {str(unknown[0])!r}: use {', '.join(PROMPT_SEGMENTS)} or {PADDING}"
        )
    for row in names:
        pads = row == PADDING
        if pads.all() or pads[int(pads.sum()) :].any():
            raise InputError(f"{PADDING!r} is for the left of a prompt, before its first token")
    visual = names == "visual"
    if image is None:
        starts = visual & ~np.pad(visual, ((0, 0), (1, 0)))[:, :-1]
        image = np.where(visual, np.cumsum(starts, axis=1) - 1, -1)
    images = int(image.max()) + 1 if visual.any() else 0
    all_columns = [
        (segment, index)
        for segment in SEGMENTS
        for index in (range(images) if segment == "visual" else (-1,))
    ]
    columns = np.full(names.shape, -1, dtype=np.int64)
    for column, (segment, index) in enumerate(all_columns):
        columns[(names == segment) & (image == index)] = column
    slots = np.full((len(names), int(visual.sum(axis=1).max())), -1, dtype=np.int64)
    for row, is_visual in enumerate(visual):
        found = np.flatnonzero(is_visual)
        slots[row, : len(found)] = found
    return KeyLayout(
        segments=names,
        image=image,
        columns=columns,
        names=tuple(segment for segment, _ in all_columns),
        column_image=tuple(index for _, index in all_columns),
        visual_slots=slots,
    )


def _split_items(names: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split ``visual:1`` into ``visual`` and the number of the image."""
    start = "visual:"
    numbered = np.char.startswith(names, start)
    if not numbered.any():
        return names, None
    found = {str(name) for name in np.unique(names[numbered])}
    expected = {f"{start}{i}" for i in range(len(found))}
    if found != expected:
        raise InputError(
            f"unknown segment {min(found - expected)!r}: number {len(found)} images from visual:0 "
            f"to visual:{len(found) - 1}"
        )
    image = np.full(names.shape, -1, dtype=np.int64)
    for i in range(len(found)):
        image[names == f"{start}{i}"] = i
    if (names == "visual").any():
        raise InputError("segments hold visual and visual:0: number all visual keys, or none")
    return np.where(numbered, "visual", names), image


class InsertedKeys:
    """Which slots of the cache hold keys inserted during a generation, and their segments.

    They belong to no response token: they are no queries of steps, and the response's tokens are
    counted without them.
    """

    def __init__(self) -> None:
        self._segments: dict[int, str] = {}

    def __contains__(self, slot: int) -> bool:
        """Whether a slot holds an inserted key."""
        return slot in self._segments

    def add(self, start: int, segments: Sequence[str | None]) -> None:
        """Note that the cache was stepped back to a slot, and what comes there now.

        None stands for a response token that is fed again.
        """
        self._segments = {s: name for s, name in self._segments.items() if s < start}
        self._segments.update(
            {start + i: name for i, name in enumerate(segments) if name is not None}
        )

    def items(self) -> list[tuple[int, str]]:
        """Slots and segments, in order."""
        return sorted(self._segments.items())

    def before(self, slots: np.ndarray, segment: str | None = None) -> np.ndarray:
        """Count the inserted keys (of one segment) before each slot: int64, as many as slots."""
        chosen = [s for s, name in self.items() if segment in (None, name)]
        return np.searchsorted(np.array(chosen, dtype=np.int64), slots).astype(np.int64)
