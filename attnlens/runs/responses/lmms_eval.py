"""Samples of lmms-eval (``--log_samples``): one JSON object a line.

Source: https://github.com/EvolvingLMMs-Lab/lmms-eval, ``lmms_eval/evaluator.py`` and
``lmms_eval/loggers/evaluation_tracker.py``. The user's text, with the task's own instruction, is
``input`` or the first of ``arguments``; ``resps`` are the answers, left out where they are the same
as ``filtered_resps``. Pictures are left out of ``doc``, and so is ``doc`` itself by newer versions:
they are found by ``doc_id`` in a folder. Older versions write one object with the list ``logs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attnlens.errors import InputError
from attnlens.runs.responses.base import Answer, Asked, Field, Format, Record, needed
from attnlens.text import shortened


def _all_texts(value: Any) -> Iterator[Any]:
    """Give the values in nested lists."""
    if isinstance(value, list):
        for one in value:
            yield from _all_texts(one)
    else:
        yield value


def _read(record: Record) -> list[Answer]:
    asked = next(_all_texts(record.get("input", record.get("arguments"))), None)
    doc = record.get("doc")
    doc = doc if isinstance(doc, dict) else {}
    question = asked if isinstance(asked, str) else doc.get("question")
    if question is None:
        raise InputError("has neither 'input' nor 'arguments' nor a question in its 'doc'")
    found = record.get("resps") or needed(record, "filtered_resps")
    texts = list(_all_texts(found))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"'resps' is {shortened(repr(found), 80)}: give generated text")
    return [
        Answer(
            question=question,
            text=text,
            id=record.get("doc_id"),
            truth=record.get("target"),
            picture=record.get("image"),
            # the task's instruction is part of the user's text
            asked=Asked(template="{question}") if question is asked else Asked(),
            used=("doc", "arguments", "input", "resps", "filtered_resps", "target", "image"),
            extra=doc,
        )
        for text in texts
    ]


FORMAT = Format(
    name="lmms-eval",
    fields='{"doc_id", "target", "input", "filtered_resps"}',
    needs=(Field(("doc_id",)), Field(("resps", "filtered_resps"))),
    read=_read,
    container="logs",
)
