"""Prompts: what ``generate`` takes, and what each of its keys is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from attnlens.errors import InputError
from attnlens.models.chat import Chat, is_chat, read_chat, single_turn
from attnlens.models.images import ImageInfo, open_image
from attnlens.models.modes import MESSAGES, mode_of, user_text
from attnlens.models.videos import Video, open_video
from attnlens.segments import PADDING
from attnlens.text import one_line, shortened

if TYPE_CHECKING:
    import torch

    from attnlens.models.family import Family, SpecialTokens

Shown = Image.Image | tuple[Image.Image, ...]
"""A picture, or the frames of a video."""


class _VLM(Protocol):
    """What prompts are built with: ``attnlens.VLM``, whose file imports this one."""

    @property
    def model(self) -> Any: ...

    @property
    def processor(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def family(self) -> Family: ...

    @property
    def special_tokens(self) -> SpecialTokens: ...


@dataclass(frozen=True)
class Prompt:
    """A question about images or videos, ready to run.

    Attributes
    ----------
    inputs
        What ``model.generate(**prompt.inputs)`` takes, on the model's device.
    segments
        str [keys]: the segment of every prompt key (``attnlens.segments``).
    image_of_key
        int [keys]: which image or video (from 0, in the order of the prompt) a visual key belongs
        to; -1 for other keys.
    images
        For each image or video: path, hash, size in pixels, grids of visual tokens, frames.
    mode, question, text
        The mode (``messages`` for chat messages), the bare question (the text of the last
        message), and the whole prompt text with its placeholders.
    pictures
        The opened images, RGB, without videos.
    """

    inputs: dict[str, torch.Tensor]
    segments: np.ndarray
    image_of_key: np.ndarray
    images: tuple[ImageInfo, ...]
    mode: str
    question: str
    text: str
    pictures: tuple[Image.Image, ...] = field(repr=False)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of visual tokens of each image; see ``ImageInfo.rows``."""
        return tuple((i.rows, i.columns) for i in self.images)

    @property
    def has_video(self) -> bool:
        """Whether one of the images is a video."""
        return any(i.frames is not None for i in self.images)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Smallest and largest area that images were resized to, in pixels; None without images."""
        return (
            (self.images[0].min_pixels, self.images[0].max_pixels) if self.images else (None, None)
        )

    @property
    def boxes(self) -> tuple[np.ndarray, ...]:
        """Pixel boxes of each image's visual tokens; see ``ImageInfo.boxes``."""
        return tuple(i.boxes() for i in self.images)


@dataclass(frozen=True)
class PromptBatch:
    """Several prompts, padded on the left to one length.

    Attributes
    ----------
    prompts
        The prompts.
    inputs
        What ``model.generate(**batch.inputs)`` takes.
    segments, image_of_key
        As in ``Prompt``, [batch, keys]; padding keys are labelled ``padding``.
    """

    prompts: tuple[Prompt, ...]
    inputs: dict[str, torch.Tensor]
    segments: np.ndarray
    image_of_key: np.ndarray


def build_prompt(
    vlm: _VLM,
    image: Any,
    question: str | None,
    mode: str | None,
    *,
    video: Video | None,
    system: str | None,
    template: str | None,
    limits: tuple[int | None, int | None],
) -> Prompt:
    """Build a prompt; see ``VLM.prompt``."""
    if is_chat(image):
        if video is not None:
            raise InputError("video cannot be given with messages: write it into the messages")
        chat = _own_chat(image, question, mode, system, template)
        mode, own = MESSAGES, True
        allowed: set[str] = set()
    else:
        mode = "normal" if mode is None else mode
        text = user_text(question, mode, template)
        words = mode_of(mode)
        system = words.system if system is None else system
        images = _as_list(image)
        videos = [] if video is None else [video]
        turn = single_turn(text, len(images), system, videos=len(videos))
        chat = Chat(turn, [text, system], [*images, *videos], str(question).strip())
        own = template is not None
        allowed = {tag for tag in _special_tokens(vlm) if tag in words.template + words.system}
    _check_texts(vlm, chat.texts, allowed, own)
    if any(isinstance(source, Video) for source in chat.images) and not vlm.family.videos:
        raise InputError(
            f"videos are not verified for {vlm.family.name} (attnlens families lists those that "
            "take them): give frames as images"
        )
    opened = [_opened(source) for source in chat.images]
    written = vlm.family.write(vlm.processor, chat.messages)
    return encode_prompt(vlm, written, opened, limits, mode=mode, question=chat.question)


def _opened(source: Any) -> tuple[Shown, ImageInfo]:
    if not isinstance(source, Video):
        return open_image(source)
    frames, info = open_video(source)
    return tuple(frames), info


def _own_chat(
    messages: Any, question: Any, mode: str | None, system: str | None, template: str | None
) -> Chat:
    for name, value in (("question", question), ("system", system), ("template", template)):
        if value is not None:
            raise InputError(f"{name} cannot be given with messages: write it into the messages")
    if mode not in (None, "normal"):
        raise InputError(
            f"mode {mode!r} cannot be given with messages, which contain their own instruction: "
            "leave it out"
        )
    return read_chat(messages)


def _special_tokens(vlm: _VLM) -> set[str]:
    tokenizer = vlm.processor.tokenizer
    special = {vlm.processor.image_token, *tokenizer.all_special_tokens}
    return special | {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}


def _check_texts(vlm: _VLM, texts: Sequence[str], allowed: set[str], own: bool) -> None:
    """Refuse texts with special tokens, which a chat template would take for its own.

    In a fine-tuned model a mode's tags may be special tokens: its instruction may hold them, and
    so may the user's own words.
    """
    special = vlm.special_tokens
    around = [*special.visual, *special.start, *special.end]
    of_images = {vlm.processor.image_token, *vlm.tokenizer.convert_ids_to_tokens(around)}
    for token in sorted({*_special_tokens(vlm), *filter(None, of_images)}):
        fine = token in allowed or (own and not token.startswith("<|"))
        fine = fine and token not in of_images
        if not fine and any(token in text for text in texts):
            raise InputError(
                f"the text holds the model's special token {token!r}: write it another way"
            )


def encode_prompt(
    vlm: _VLM,
    text: str,
    opened: Sequence[tuple[Shown, ImageInfo]],
    limits: tuple[int | None, int | None],
    *,
    mode: str,
    question: str,
) -> Prompt:
    """Make a prompt of a text as the chat template writes it, with a placeholder for each image.

    ``opened`` are the images as ``open_image`` returns them, and the videos; ``limits`` are
    ``min_pixels`` and ``max_pixels``, the processor's own where None; ``mode`` and ``question`` are
    only recorded.

    Raises
    ------
    InputError
        If there are more or fewer placeholders than images, the limits cannot hold, or the
        processor refuses the prompt.
    """
    pictures = [shown for shown, _ in opened if isinstance(shown, Image.Image)]
    length = vlm.family.frames_in_grid(vlm.processor)
    frames = [i.frames if i.frames is None else replace(i.frames, length=length) for _, i in opened]
    videos = [
        (shown, own)
        for (shown, _), own in zip(opened, frames, strict=True)
        if not isinstance(shown, Image.Image) and own is not None
    ]
    special = vlm.special_tokens
    order = _order(vlm, special, text, [info.frames is not None for _, info in opened])
    bounds = vlm.family.pixel_limits(vlm.processor, *limits)
    least, most = bounds or (None, None)
    own = None if limits == (None, None) else bounds
    try:
        if videos:
            encoded = vlm.family.encode_videos(vlm.processor, text, pictures, videos, limits)
        else:
            encoded = vlm.family.encode(vlm.processor, text, pictures, own)
    except ValueError as error:
        reason = shortened(one_line(str(error)), 200)
        raise InputError(f"the processor refused the prompt: {reason}") from error
    ids = encoded["input_ids"][0].numpy()
    sizes = [(info.height, info.width) for _, info in opened if info.frames is None]
    tiles = vlm.family.tiles(vlm.processor, vlm.model.config, encoded, sizes)
    infos = [
        replace(
            info.in_tiles(tiles[place]),
            frames=shown,
            min_pixels=least if shown is None else limits[0],
            max_pixels=most if shown is None else limits[1],
        )
        for (_, info), shown, place in zip(opened, frames, order, strict=True)
    ]
    visual = np.isin(ids, special.visual)
    counts = [info.rows * info.columns for info in infos]
    if sum(counts) != visual.sum():
        raise InputError(
            f"the processor made {visual.sum()} visual tokens, and {vlm.family.name} has {counts} "
            "in images of these sizes: its settings are not those that attnlens knows"
        )
    image_of_key = np.full(len(ids), -1, dtype=np.int64)
    image_of_key[visual] = np.repeat(np.arange(len(counts)), counts)
    segments = label_segments(ids, image_of_key, end=special.end)
    return Prompt(
        inputs={k: v.to(vlm.model.device) for k, v in encoded.items()},
        segments=segments,
        image_of_key=image_of_key,
        images=tuple(infos),
        mode=mode,
        question=question,
        text=text,
        pictures=tuple(pictures),
    )


def _order(vlm: _VLM, special: SpecialTokens, text: str, are_videos: Sequence[bool]) -> list[int]:
    """Place of each image or video among all images, followed by all videos.

    Raises
    ------
    InputError
        If the text has not as many placeholders of each kind, in this order.
    """
    image = vlm.processor.image_token
    video = None if special.video is None else vlm.processor.video_token
    pattern = "|".join(re.escape(token) for token in (image, video) if token)
    found = [match == video for match in re.findall(pattern, text)]
    if found != list(are_videos):
        asked = f"{are_videos.count(False)} images"
        if any(are_videos):
            asked += f" and {are_videos.count(True)} videos"
        raise InputError(
            f"the prompt's text has {len(found)} placeholders for {asked}: use the chat template "
            "of the checkpoint"
        )
    images = found.count(False)
    return [
        images + sum(found[:i]) if is_video else found[:i].count(False)
        for i, is_video in enumerate(found)
    ]


def with_pictures(vlm: _VLM, prompt: Prompt, pictures: Sequence[Any]) -> Prompt:
    """Ask the same about other images: as many, or none.

    Without ``pictures`` the images are left out with the tokens around them. Raises as
    ``encode_prompt``, and for a prompt with a video.
    """
    if prompt.has_video:
        raise InputError("the prompt has a video, which cannot be replaced: give one with images")
    text = prompt.text
    if not pictures:
        special, token = vlm.special_tokens, vlm.processor.image_token
        start, end = (
            "".join(vlm.tokenizer.convert_ids_to_tokens(list(ids)))
            for ids in (special.start, special.end)
        )
        # some processors write what surrounds an image, others the chat template
        text = text.replace(f"{start}{token}{end}", "").replace(token, "")
    return encode_prompt(
        vlm,
        text,
        [open_image(picture) for picture in pictures],
        prompt.limits,
        mode=prompt.mode,
        question=prompt.question,
    )


def _as_list(image: Any) -> list[Any]:
    if image is None:
        return []
    one = isinstance(image, str | bytes | bytearray | memoryview)
    return list(image) if isinstance(image, Sequence) and not one else [image]


def batch_prompts(family: Family, prompts: Sequence[Prompt], padding_id: int) -> PromptBatch:
    """Pad prompts on the left to one length; see ``VLM.batch``."""
    if not prompts:
        raise InputError("no prompts were given: give at least one")
    inputs = family.join([p.inputs for p in prompts], padding_id)
    length = inputs["input_ids"].shape[1]
    segments = np.full((len(prompts), length), PADDING, dtype="<U10")
    image_of_key = np.full((len(prompts), length), -1, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        segments[row, length - len(prompt.segments) :] = prompt.segments
        image_of_key[row, length - len(prompt.segments) :] = prompt.image_of_key
    return PromptBatch(tuple(prompts), inputs, segments, image_of_key)


def label_segments(ids: np.ndarray, image: np.ndarray, *, end: tuple[int, ...] = ()) -> np.ndarray:
    """Label the keys of one prompt, str [keys]; see ``attnlens.segments`` for the names.

    ``ids`` is int [keys]; ``image`` is the image that each visual key belongs to, -1 for others;
    ``end`` are the tokens that close one. What divides an image, between its visual keys, counts as
    ``vision_end``, too; anything between two images counts as ``query``.
    """
    visual = image >= 0
    labels = np.full(len(ids), "query", dtype="<U10")
    if visual.any():
        labels[: int(np.argmax(visual))] = "system"
    for number in range(int(image.max(initial=-1)) + 1):
        slots = np.flatnonzero(image == number)
        labels[slots[0] : slots[-1]] = "vision_end"
        # only what closes an image: a stray token in the user's text is text
        for place, token in enumerate(end, slots[-1] + 1):
            if place >= len(ids) or ids[place] != token:
                break
            labels[place] = "vision_end"
    labels[0] = "sink"
    labels[visual] = "visual"
    return labels
