"""Lines of OpenAI's batch output: ``{"custom_id", "response": {"body": {"choices"}}, "error"}``.

Source: https://platform.openai.com/docs/guides/batch; ``vllm run-batch`` writes the same. A line
has no question: add those of the batch's input, ``messages`` or the whole ``body`` of the request,
or a ``question`` with ``image``. A request that failed has an ``error``, or a ``status_code`` other
than 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from attnlens.errors import InputError
from attnlens.runs.responses import chat
from attnlens.runs.responses.base import Answer, Field, Format, Record, ended, needed, shown


def _read(record: Record) -> list[Answer]:
    body = _body(record)
    replies = chat.replies_of(body)
    if not replies:
        raise InputError(f"'body' of its 'response' has no 'choices': it is {shown(body)}")
    request = record.get("body")
    asked = request if isinstance(request, Mapping) else {}
    messages = record.get("messages", asked.get("messages"))
    used = ("custom_id", "id", "method", "url", "body", "response", "error")
    if messages is not None:
        if not isinstance(messages, list):
            raise InputError(f"'messages' is {shown(messages)}: give a list of them")
        answered = {
            **{name: value for name, value in record.items() if name not in used},
            "id": record["custom_id"],
            "messages": messages,
            "choices": body["choices"],
        }
        found = chat.read(answered)
        return [replace(one, used=(*one.used, *used)) for one in found]
    if record.get("question") is None:
        raise InputError(
            "has neither 'messages' nor a 'question': add those of the request with the same "
            "'custom_id'"
        )
    return [
        Answer(
            question=needed(record, "question"),
            text=chat.text_of(reply.get("content")),
            id=record["custom_id"],
            truth=record.get("answer"),
            picture=record.get("image"),
            finished=ended(reason),
            used=(*used, "question", "answer", "image"),
        )
        for reply, reason in replies
    ]


def _body(record: Record) -> Mapping[str, Any]:
    """Return the body of the response, or raise ``InputError`` where the request failed."""
    response = record.get("response")
    response = response if isinstance(response, Mapping) else {}
    body, status = response.get("body"), response.get("status_code", 200)
    failed = record.get("error")
    if failed is None and status != 200:
        failed = body if body is not None else f"status {status}"
    if failed is not None:
        raise InputError(f"its request failed: {shown(failed)}")
    if not isinstance(body, Mapping):
        raise InputError(f"'body' of its 'response' is {shown(body)}: give an object")
    return body


class _Batch(Format):
    def matches(self, record: Record) -> bool:
        """Whether a record is of this format; chat messages may have a ``custom_id``, too."""
        response = record.get("response")
        is_output = isinstance(response, Mapping) and "body" in response
        return super().matches(record) and (is_output or record.get("error") is not None)


FORMAT = _Batch(
    name="batch",
    fields='{"custom_id", "response": {"body": {"choices"}}}',
    needs=(Field(("custom_id",)), Field(("response", "error"))),
    read=_read,
)
