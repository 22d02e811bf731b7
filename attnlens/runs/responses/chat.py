"""Chat messages in OpenAI's form with the reply: ``{"messages": [...]}``.

Source: https://platform.openai.com/docs/api-reference/chat. The reply is the last message, of the
role ``assistant``, or the first of ``choices``, or ``response`` (a text, or an object with
``choices``). Pictures are parts of messages (``image_url`` with a path, a ``file:`` or a ``data:``
URL); a part without one stands for the record's ``image``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnlens.errors import InputError
from attnlens.models.chat import read_chat
from attnlens.runs.responses.base import Answer, Asked, Field, Format, Record, ended
from attnlens.text import shortened


def read(record: Record) -> list[Answer]:
    """Find the replies in a record."""
    messages = [_with_source(message) for message in record["messages"]]
    replies = replies_of(record)
    if not replies:
        last = messages.pop() if messages else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            raise InputError(
                "has no reply: end 'messages' with one of the assistant, or give 'choices' or "
                "'response'"
            )
        replies = [(last, record.get("finish_reason"))]
    if not messages:
        raise InputError("has no messages before the reply: give those that were answered")
    chat = read_chat(messages)
    if len(chat.images) > 1:
        raise InputError(f"has {len(chat.images)} pictures: an answer is read with one")
    picture = chat.images[0] if chat.images else None
    return [
        Answer(
            question=chat.question,
            text=text_of(reply.get("content")),
            id=record.get("id", record.get("custom_id")),
            truth=record.get("answer"),
            picture=picture if picture else record.get("image"),
            asked=Asked(messages=chat.messages),
            finished=ended(reason),
            used=("messages", "choices", "response", "answer", "image", "images"),
        )
        for reply, reason in replies
    ]


def replies_of(record: Record) -> list[tuple[Mapping[str, Any], Any]]:
    """Return each reply that does not stand in the messages, and how it ended."""
    response = record.get("response")
    if isinstance(response, str):
        return [({"content": response}, record.get("finish_reason"))]
    choices = (response if isinstance(response, dict) else record).get("choices") or []
    found: list[tuple[Mapping[str, Any], Any]] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise InputError(f"'choices' holds {shortened(repr(choice), 80)}: give messages")
        # vLLM's server names a stop string here
        string = isinstance(choice.get("stop_reason"), str)
        found.append((message, None if string else choice.get("finish_reason")))
    return found


def text_of(content: Any) -> Any:
    """Return the text of a reply, which may be in parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) != len(content):
        raise InputError(f"the reply is {shortened(repr(content), 80)}: give text alone")
    return "".join(found)


def _with_source(message: Any) -> Any:
    """Give parts that only mark the picture's place an empty source, which ``read_chat`` wants."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    content = [
        {"type": "image", "image": ""} if part == {"type": "image"} else part
        for part in message["content"]
    ]
    return {**message, "content": content}


FORMAT = Format(
    name="chat",
    fields='{"messages": [..., {"role": "assistant", "content"}]}',
    needs=(Field(("messages",), list),),
    read=read,
)
