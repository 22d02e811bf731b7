"""Answers to judge: from a file of responses, or from a folder of recorded answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.runs.cache import SETTINGS
from attnlens.runs.dataset import Question
from attnlens.runs.recordings import SUMMARY, find_runs
from attnlens.runs.responses import Response, ResponseFile, read_responses
from attnlens.runs.responses.base import spool_responses
from attnlens.stores import reaching, read_bytes
from attnlens.text import quoted, shortened

if TYPE_CHECKING:
    from attnlens.recording.trace import Trace

COMMANDS = ("trend", "replay")
"""Commands that record answers; a folder of results is named after each."""
_NUMBERED = re.compile(r"(\d{5,})_")
"""Name of the folder of a line's results."""


def read_answers(path: Path, format: str | None = None) -> tuple[ResponseFile, Path | None]:
    """Read responses, and say where their traces are, if that is known.

    Parameters
    ----------
    path
        A file of responses, or a folder of results of ``attnlens trend --data`` or ``attnlens
        replay``: that of ``--save_folder``, if it holds one mode, or ``trend/MODE`` or
        ``replay/MODE`` in it.
    format
        Format of a file, as in ``read_responses``.

    Raises
    ------
    InputError
        If there is nothing to read, or a folder holds several modes.
    """
    with reaching(path):
        is_folder = path.is_dir()
    if not is_folder:
        return read_responses(path, format=format), None
    if format is not None:
        raise InputError(
            f"--answers_format {shortened(format, 80)!r}: {quoted(path)} is a folder of results, "
            "so leave the option out"
        )
    modes = [path]
    if not any(path.glob(f"*/{SUMMARY}")):
        modes = [mode for command in COMMANDS for mode in sorted((path / command).glob("*/"))]
    if len(modes) != 1:
        names = ", ".join(mode.relative_to(path).as_posix() for mode in modes)
        raise InputError(
            f"{quoted(path)} holds answers of several modes: give one of {names} in it"
            if modes
            else f"{quoted(path)} holds no answers: give a file of them, or a folder that attnlens "
            "trend --data or attnlens replay wrote"
        )
    mode = modes[0].resolve()
    responses = spool_responses(map(_summarised, sorted(mode.glob(f"*/{SUMMARY}"))))
    if not responses:
        raise InputError(f"{quoted(mode)} holds no answer: give the command that wrote it again")
    command = mode.parent.name
    runs = mode.parents[1] / f"{command}_runs" / mode.name
    return ResponseFile(responses, f"attnlens {command}"), runs


def _summarised(path: Path) -> Response:
    """Read an answer from the summary of a run."""
    number = _NUMBERED.match(path.parent.name)
    line = int(number[1]) if number else None
    try:
        found = json.loads(read_bytes(path))
        texts = [found[name] for name in ("image", "question", "response")]
        if not all(isinstance(text, str) for text in (*texts, found.get("expected") or "")):
            raise TypeError("texts are missing")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        problem = f"{quoted(path)} cannot be read: {error}"
        return Response(Question("", "", line=line, problem=problem), "", id=path.parent.name)
    image, question, response = texts
    asked = Question(image, question, found.get("expected"), line)
    return Response(asked, response, id=str(line) if line is not None else path.parent.name)


def trace_paths(folder: Path) -> dict[int, Path]:
    """Find the traces of answers by the numbers of their lines.

    Parameters
    ----------
    folder
        Results of ``attnlens trend --data`` or ``attnlens replay`` for the lines of a file, in
        folders that begin with the number of the line.

    Raises
    ------
    InputError
        If the folder holds no trace, or several of one line.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {quoted(folder)}: give one with traces")
    paths: dict[int, Path] = {}
    for path in find_runs(folder):
        number = _NUMBERED.match(path.parent.name)
        if number and paths.setdefault(int(number[1]), path) != path:
            raise InputError(
                f"{quoted(folder)} holds several traces of line {int(number[1])}: give the folder "
                "of one mode"
            )
    if not paths:
        raise InputError(
            f"{quoted(folder)} holds no traces of numbered lines: give a folder that attnlens "
            "trend --data or attnlens replay wrote"
        )
    return paths


def trace_of(path: Path, question: str, text: str) -> Trace | None:
    """Load the trace of an answer; None if it is of another question, or of another answer."""
    from attnlens.recording.trace import Trace

    settings = _settings_of(path.parent)
    if settings.get("question") != question:
        return None
    trace = Trace.load(path)
    return trace if _same_answer(trace.text, text, settings) else None


def _same_answer(recorded: str, text: str, settings: Mapping[str, Any]) -> bool:
    """Whether a trace is that of an answer; engines may cut a stop string off, and white space."""
    replayed = settings.get("replayed") or {}
    if replayed.get("text_sha256") == hashlib.sha256(text.encode()).hexdigest():
        return True
    told = text.strip()
    return bool(told) and recorded.strip().startswith(told)


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; empty where they cannot be read."""
    try:
        found = json.loads(read_bytes(folder / SETTINGS))["settings"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
