"""Chat messages in Hugging Face's form: built around a question, or read from the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.errors import InputError
from attnlens.models.modes import DEFAULT_SYSTEM
from attnlens.models.videos import Video
from attnlens.text import shortened

ROLES = ("system", "user", "assistant")
SOURCES = ("image", "url", "path", "base64")
"""Names under which a part of a message may hold its picture."""
VIDEO_SOURCES = ("video", "url", "path")
"""Names under which a part of a message may hold its video."""
SAMPLING = ("fps", "max_frames")
"""What a part of a message may say of its video."""
FORM = (
    '[{"role": "user", "content": '
    '[{"type": "image", "image": ...}, {"type": "text", "text": ...}]}]'
)


@dataclass(frozen=True)
class Chat:
    """A conversation for the model to continue.

    Attributes
    ----------
    messages
        As the chat template takes them; images and videos without their pictures.
    texts
        All texts in them.
    images
        The source of each image, in order; a ``Video`` for each video.
    question
        Text of the last message.
    """

    messages: list[dict[str, Any]]
    texts: list[str]
    images: list[Any]
    question: str


def is_chat(value: Any) -> bool:
    """Whether a value is meant as chat messages."""
    if isinstance(value, Mapping):
        return True
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and any(isinstance(one, Mapping) for one in value)


def read_chat(value: Any) -> Chat:
    """Read chat messages; see ``VLM.prompt`` for their form.

    Raises
    ------
    InputError
        If they are in another form, hold anything but text and images, or do not end with the
        user's turn.
    """
    if isinstance(value, Mapping):
        raise InputError(f"one message was given: give a list of them, {FORM}")
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    images: list[Any] = []
    for number, message in enumerate(value):
        where = f"message {number}"
        if not isinstance(message, Mapping) or set(_known(message)) != {"role", "content"}:
            raise InputError(f"{where} is {_short(message)}: give role and content, as in {FORM}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise InputError(f"{where} has the role {_short(role)}: use one of {', '.join(ROLES)}")
        if role == "system" and number:
            raise InputError(f"{where} is the system's: give it as the first one")
        own_texts: list[str] = []
        parts: Any = content
        if isinstance(content, str):
            own_texts.append(content)
        elif isinstance(content, Sequence):
            parts = []
            for part in content:
                kind, held = _part(part, where)
                parts.append({"type": kind, "text": held} if kind == "text" else {"type": kind})
                (own_texts if kind == "text" else images).append(held)
        else:
            raise InputError(f"{where} has the content {_short(content)}: give a text or a list")
        messages.append({"role": role, "content": parts})
        texts += own_texts
    if messages[-1]["role"] != "user":
        raise InputError(
            f"the last message is the {messages[-1]['role']}'s: end with one of the user's, which "
            "the model answers"
        )
    return Chat(messages, texts, images, "\n".join(own_texts).strip())


def _part(part: Any, where: str) -> tuple[str, Any]:
    """Return the kind of a message's part, ``text``, ``image`` or ``video``, and what it holds."""
    fields = _known(part) if isinstance(part, Mapping) else {}
    kind = fields.pop("type", None)
    if kind == "text" and set(fields) == {"text"} and isinstance(fields["text"], str):
        return "text", fields["text"]
    if kind == "image_url" and set(fields) == {"image_url"}:
        url = fields["image_url"]
        kind, fields = "image", dict(url) if isinstance(url, Mapping) else {"url": url}
        fields.pop("detail", None)  # the size at which OpenAI's own models look
    if kind == "image" and len(fields) == 1 and next(iter(fields)) in SOURCES:
        name, value = next(iter(fields.items()))
        if name == "base64" and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:;base64,{value}"
        return "image", value
    if kind == "video":
        sampling = {name: fields.pop(name) for name in SAMPLING if name in fields}
        if len(fields) == 1 and next(iter(fields)) in VIDEO_SOURCES:
            return "video", Video(next(iter(fields.values())), **sampling)
    raise InputError(
        f"{where} has a part {_short(part)}: give "
        '{"type": "text", "text": ...} or {"type": "image"} with one of '
        f'{", ".join(SOURCES)}, or {{"type": "video"}} with one of {", ".join(VIDEO_SOURCES)} '
        f"and, if need be, {' and '.join(SAMPLING)}; limits of pixels are given to vlm.prompt"
    )


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out values of None: rows of a data set have the keys of all other rows."""
    return {name: value for name, value in fields.items() if value is not None}


def _short(value: Any) -> str:
    return shortened(repr(value), 80)


def single_turn(
    text: str, images: int, system: str | None = None, *, videos: int = 0
) -> list[dict]:
    """Chat messages of one turn: system text, so many images and videos, then the user's text."""
    content: list[dict] = [{"type": "image"} for _ in range(images)]
    content += [{"type": "video"} for _ in range(videos)]
    content.append({"type": "text", "text": text})
    system_text = DEFAULT_SYSTEM if system is None else system
    return [
        {"role": "system", "content": [{"type": "text", "text": system_text}]},
        {"role": "user", "content": content},
    ]
