"""vLLM's ``RequestOutput`` as JSON: a prompt, and ``outputs`` with text and token ids.

Source: https://docs.vllm.ai/en/latest/api/vllm/outputs/. An output's ``token_ids`` include the
token that ended it; ``finish_reason`` is ``stop`` or ``length``, and ``stop_reason`` is the stop
string or token, None for the model's own end token. ``prompt`` is the text of the chat template;
``question`` may stand in its place. An output names no picture: add ``image`` or ``id`` (and
``answer``) to the record. ``request_id`` is vLLM's own count of requests, which goes on over calls,
and names no picture.
"""

from __future__ import annotations

from attnlens.errors import InputError
from attnlens.runs.responses.base import (
    Answer,
    Field,
    Format,
    Record,
    ended,
    needed,
    shown,
    user_text,
    whole_prompt,
)


def _read(record: Record) -> list[Answer]:
    prompt = record.get("prompt")
    question = record.get("question")
    if question is None:
        question = user_text(needed(record, "prompt"))
    found = []
    for output in record["outputs"]:
        if not isinstance(output, dict):
            raise InputError(f"'outputs' holds {shown(output)}: give objects")
        by_token = not isinstance(output.get("stop_reason"), str)
        found.append(
            Answer(
                question=question,
                text=needed(output, "text"),
                token_ids=output.get("token_ids") or None,
                id=record.get("id"),
                request=record.get("request_id"),
                truth=record.get("answer"),
                picture=record.get("image"),
                asked=whole_prompt(prompt),
                finished=ended(output.get("finish_reason"), by_token=by_token),
                prompt_ids=record.get("prompt_token_ids"),
                used=(*USED, "question", "answer", "image"),
            )
        )
    return found


USED = (
    "prompt",
    "prompt_token_ids",
    "prompt_logprobs",
    "outputs",
    "encoder_prompt",
    "encoder_prompt_token_ids",
    "metrics",
)

FORMAT = Format(
    name="vllm",
    fields='{"prompt", "outputs": [{"text", "token_ids", "finish_reason"}]}',
    needs=(Field(("outputs",), list),),
    read=_read,
)
