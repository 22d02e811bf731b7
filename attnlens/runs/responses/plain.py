"""Plain records: ``{"image": ..., "question": ..., "response": ..., "answer": ...}``.

``answer`` (the right one), ``id``, ``token_ids`` and ``finish_reason`` may be left out.
"""

from __future__ import annotations

from attnlens.runs.responses.base import Answer, Field, Format, Record, ended, needed


def _read(record: Record) -> list[Answer]:
    return [
        Answer(
            question=needed(record, "question"),
            text=record["response"],
            token_ids=record.get("token_ids"),
            id=record.get("id"),
            truth=record.get("answer"),
            picture=record.get("image"),
            finished=ended(record.get("finish_reason")),
            used=("question", "response", "token_ids", "image", "answer"),
        )
    ]


FORMAT = Format(
    name="plain",
    fields='{"image", "question", "response"}',
    needs=(Field(("question",)), Field(("response",), str)),
    read=_read,
)
