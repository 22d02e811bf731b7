"""SGLang's outputs as JSON: ``{"text", "output_ids", "meta_info"}``.

Source: https://docs.sglang.io/basic_usage/sampling_params.html and its native API. ``output_ids``
include the token that ended the answer; ``meta_info.finish_reason`` is ``{"type": "stop",
"matched": ...}``, with the token or the string that was matched, or ``{"type": "length"}``. An
output names neither prompt nor picture: add ``prompt`` (the text of the chat template) or
``question``, and ``image`` or ``id`` (and ``answer``) to the record. ``meta_info.id`` is the
engine's own number of the request, and names no picture.
"""

from __future__ import annotations

from attnlens.runs.responses.base import (
    Answer,
    Field,
    Format,
    Record,
    ended,
    needed,
    user_text,
    whole_prompt,
)


def _read(record: Record) -> list[Answer]:
    prompt = record.get("prompt")
    question = record.get("question")
    if question is None and prompt is not None:
        question = user_text(prompt)
    reason = record["meta_info"].get("finish_reason")
    reason = reason if isinstance(reason, dict) else {"type": reason}
    return [
        Answer(
            question=needed(record, "question") if question is None else question,
            text=record["text"],
            token_ids=record.get("output_ids") or None,
            id=record.get("id"),
            request=record["meta_info"].get("id"),
            truth=record.get("answer"),
            picture=record.get("image"),
            asked=whole_prompt(prompt),
            finished=ended(reason.get("type"), by_token=not isinstance(reason.get("matched"), str)),
            used=(*USED, "prompt", "question", "answer", "image"),
        )
    ]


USED = ("text", "output_ids", "meta_info")

FORMAT = Format(
    name="sglang",
    fields='{"text", "output_ids", "meta_info"}',
    needs=(Field(("text",)), Field(("meta_info",), dict)),
    read=_read,
)
