"""Answers that any engine gave, read from its own file: one file here for each format.

A format lists itself in ``FORMATS``. It is recognised by the fields of the file's first record.
JSON Lines are read line by line; a file that is a single JSON value is read as a whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.progress import progress
from attnlens.runs.dataset import Question
from attnlens.runs.responses import batch, chat, lmms_eval, look_back, plain, sglang, vllm
from attnlens.runs.responses.base import (
    Answer,
    Asked,
    Format,
    Record,
    Response,
    checked_ids,
    checked_text,
    checked_truth,
    digest,
    spool_responses,
)
from attnlens.runs.responses.pictures import Pictures
from attnlens.runs.spool import Spool
from attnlens.stores import local_copy, located
from attnlens.text import quoted, shortened

__all__ = ["FORMATS", "Asked", "Response", "ResponseFile", "read_responses"]

FORMATS = {
    module.FORMAT.name: module.FORMAT
    for module in (look_back, vllm, sglang, lmms_eval, batch, chat, plain)
}
"""The formats by name, in the order in which they are tried."""


@dataclass(frozen=True)
class ResponseFile:
    """The answers of a file.

    Attributes
    ----------
    responses
        One for each answer, and one with a ``problem`` for each record that cannot be used; they
        are kept on disk.
    format
        Name of the format.
    assumed
        Sentences about what the reader had to assume.
    """

    responses: Spool[Response]
    format: str
    assumed: list[str] = field(default_factory=list)


def read_responses(
    path: str | Path,
    *,
    images: str | Path | None = None,
    format: str | None = None,
    image_column: str | None = None,
    save_folder: str | Path | None = None,
) -> ResponseFile:
    """Read answers from a JSON or JSON Lines file.

    Parameters
    ----------
    path
        The file. Names of pictures in it are relative to its folder.
    images
        Folder of the pictures, in place of the file's. A record that names no picture has the one
        that is named after its identifier.
    format
        One of ``FORMATS``; recognised when not given.
    image_column
        Field of the records that names or holds the picture, in place of the format's own.
    save_folder
        Where pictures that stand in the file in base64 are written; left out when not given.

    Raises
    ------
    InputError
        If the file or the folder cannot be read, the file holds no record, or it is in none of the
        formats.
    """
    path = located(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        kind = path.suffix[1:].upper()
        raise InputError(f"{quoted(path)}: {kind} is not read, so write it as JSON Lines")
    pictures = Pictures(
        path.parent,
        None if images is None else located(images),
        image_column,
        None if save_folder is None else located(save_folder),
    )
    chosen = None if format is None else _format_of(format)
    asked: Asked | None = None
    found = spool_responses()
    several = False
    for line, record, container in progress(_records(path), description="reading"):
        if isinstance(record, InputError):
            found.append(_bad(line, record))
            continue
        if chosen is None:
            chosen = _recognised(record, path)
        if asked is None:
            asked = _asked_of(chosen, container, path)
        try:
            if not chosen.matches(record):
                raise InputError(chosen.problem(record))
            answers = chosen.read(record)
            several = several or len(answers) > 1
            new = [
                _response(one, record, line, number, asked, pictures)
                for number, one in enumerate(answers, 1)
            ]
        except InputError as error:
            new = [_bad(line, error)]
        for one in new:
            try:
                found.append(one)
            except RecursionError:
                found.append(_bad(line, InputError("is nested too deeply")))
    if not found:
        raise InputError(f"{quoted(path)} is empty: give a file of answers")
    if chosen is None:
        raise InputError(f"no line of {quoted(path)} can be used; {_said(found[0])}")
    assumed = []
    if several:  # a line is the name of an answer
        found = spool_responses(
            replace(one, question=replace(one.question, line=number))
            for number, one in enumerate(found, 1)
        )
        assumed.append("records hold several answers: lines are counted by answer")
    return ResponseFile(found, chosen.name, assumed)


def _format_of(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}: use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _recognised(record: Record, path: Path) -> Format:
    for one in FORMATS.values():
        if one.matches(record):
            return one
    for one in FORMATS.values():
        if not one.lacks(record):  # a value is of another kind, such as null
            return one
    there = shortened(", ".join(map(repr, record)), 80) or "nothing"
    formats = "; ".join(f"{one.name}: {one.fields}" for one in FORMATS.values())
    raise InputError(
        f"the format of {quoted(path)} is not known: its first record has {there}{_nearest(record)}"
        f"; name it with --answers_format, or give one of {formats}"
    )


def _nearest(record: Record) -> str:
    """Say which fields a record lacks for the formats of which it has the most."""
    missing = {one: one.lacks(record) for one in FORMATS.values()}
    missing = {one: names for one, names in missing.items() if len(names) < len(one.needs)}
    least = min(map(len, missing.values()), default=0)
    near = [
        f"{' and '.join(map(repr, names))} for the format {one.name}"
        for one, names in missing.items()
        if len(names) == least
    ]
    return f", and lacks {', or '.join(near)}" if near else ""


def _asked_of(one: Format, container: Record | None, path: Path) -> Asked:
    try:
        return Asked() if one.asked is None or container is None else one.asked(container)
    except InputError as error:
        raise InputError(f"{quoted(path)} cannot be used: {error}") from error


def _response(
    answer: Answer,
    record: Record,
    line: int,
    number: int,
    asked: Asked,
    pictures: Pictures,
) -> Response:
    prompt_ids = checked_ids("prompt_token_ids", answer.prompt_ids)
    ids = checked_ids("token_ids", answer.token_ids)
    used = {*answer.used, pictures.column}
    fields = {name: v for name, v in record.items() if name not in used} | dict(answer.extra)
    try:
        truth = checked_truth(answer.truth)
    except InputError as error:  # it can be replayed all the same
        truth, fields["truth_problem"] = None, str(error)
    own = answer.request if answer.id is None else answer.id
    name = str(line) if own is None else checked_text("id", str(own))
    return Response(
        question=Question(
            image=checked_text("image", pictures.find(record, answer.picture, answer.id)),
            text=checked_text("question", answer.question),
            answer=truth,
            line=line,
        ),
        text=checked_text("response", answer.text),
        token_ids=None if ids is None else tuple(ids),
        id=name if number == 1 else f"{name} ({number})",
        has_id=answer.id is not None,
        asked=asked if answer.asked == Asked() else answer.asked,
        fields=fields,
        finished=answer.finished,
        prompt_digest="" if prompt_ids is None else digest(prompt_ids),
    )


def _bad(line: int, problem: InputError) -> Response:
    question = Question("", "", line=line, problem=str(problem))
    return Response(question, "", None, str(line), Asked(), {})


def _said(response: Response) -> str:
    return f"line {response.question.line}: {response.question.problem}"


def _records(path: Path) -> Iterator[tuple[int, Record | InputError, Record | None]]:
    """Give each record with its line or place, and the JSON object around all of them."""
    try:
        with local_copy(path) as local, local.open("rb") as file:
            first = b""
            while not first.strip():
                first = file.readline()
                if not first:
                    return
            first = first.removeprefix(codecs.BOM_UTF8)
            value = _parsed(first)
            whole = isinstance(value, list) or bool(_container(value))
            if whole or isinstance(value, InputError):
                # one line of an indented JSON file is no JSON
                document = value if whole else _parsed(first + file.read())
                if whole and file.read().strip():
                    raise InputError(
                        f"{quoted(path)} holds several JSON documents: give a file for each"
                    )
                if not isinstance(document, InputError):
                    yield from _of_document(document)
                    return
            file.seek(0)
            for line, text in enumerate(file, 1):
                if text.strip():
                    one = _parsed(text.removeprefix(codecs.BOM_UTF8))
                    yield line, _as_record(one), None
    except OSError as error:
        raise InputError(
            f"{quoted(path)} cannot be read ({error.strerror or error}): give a JSON or JSON Lines "
            "file"
        ) from error


def _of_document(document: Any) -> Iterator[tuple[int, Record | InputError, Record | None]]:
    name = _container(document)
    records = document[name] if name else document if isinstance(document, list) else [document]
    for place, record in enumerate(records, 1):
        yield place, _as_record(record), document if name else None


def _container(value: Any) -> str:
    """Return the name of the list of records in an object that is a whole file; else empty."""
    if not isinstance(value, dict) or any(one.matches(value) for one in FORMATS.values()):
        return ""
    names = [one.container for one in FORMATS.values() if one.container]
    return next((name for name in names if isinstance(value.get(name), list)), "")


def _as_record(value: Any) -> Record | InputError:
    return value if isinstance(value, dict | InputError) else InputError("is not a JSON object")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        return InputError(f"is not UTF-8 (byte {error.start + 1} of it)")
    except (ValueError, RecursionError) as error:
        return InputError(f"is not valid JSON ({error})")
