"""Files of Look-Back's evaluation (arXiv 2507.03019): one JSON object of results and config.

Source: https://github.com/ruiz-nju/Look-Back, ``eval/main.py`` and ``eval/utils/processing.py``.
Its ``config`` has the version of the prompt (``grpo``: the instruction is the system text;
``back``: it follows the question; ``hint``: it precedes it), the instruction, and the limits of
the picture's area. A result names no picture. White space at both ends of a prediction is lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnlens.errors import InputError
from attnlens.models.modes import LOOK_BACK, Mode
from attnlens.runs.responses.base import (
    Answer,
    Asked,
    Field,
    Format,
    Record,
    checked_text,
    needed,
)
from attnlens.text import shortened

VERSIONS = ("grpo", "back", "hint")


def _asked(container: Record) -> Asked:
    """Read the config; what it leaves out is not known."""
    config: Any = container.get("config")
    if not isinstance(config, dict):
        return Asked()
    least, most = (config.get(name) for name in ("min_pixels", "max_pixels"))
    for value in (least, most):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"its config has the area {shortened(repr(value), 80)}: give pixels")
    resized = Asked(
        min_pixels=least,
        max_pixels=most,
        resized_first=least is not None or most is not None,
    )
    version, words = config.get("version"), config.get("system_prompt")
    if version is None:
        return resized
    if version not in VERSIONS:
        shown = shortened(repr(version), 80)
        raise InputError(f"its config has the version {shown}: use one of {', '.join(VERSIONS)}")
    if words is None:
        return replace(resized, version=version)
    mode = _mode(version, checked_text("system_prompt", words))
    name = next((name for name, known in LOOK_BACK.items() if known == mode), None)
    return replace(resized, mode=name, system=mode.system, template=mode.template)


def _mode(version: str, words: str) -> Mode:
    if version == "grpo":
        return Mode("{question}", words)
    if version == "back":
        return Mode(f"{{question}} {words}")
    return Mode(f" {words} \n Qwestion: {{question}}")  # spelled so there


def _read(record: Record) -> list[Answer]:
    return [
        Answer(
            question=needed(record, "question"),
            text=needed(record, "prediction"),
            id=record.get("id"),
            truth=record.get("answer"),
            picture=record.get("image"),
            used=("question", "prediction", "answer", "image"),
        )
    ]


FORMAT = Format(
    name="look-back",
    fields='{"results": [{"id", "question", "answer", "prediction"}], "config"}',
    needs=(Field(("question",)), Field(("prediction",))),
    read=_read,
    container="results",
    asked=_asked,
)
