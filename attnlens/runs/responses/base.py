"""What a file of answers holds, whatever engine wrote it, and what each format has to say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attnlens.answers import true_answer
from attnlens.errors import InputError
from attnlens.runs.dataset import Question
from attnlens.runs.spool import Spool
from attnlens.text import shortened

Record = Mapping[str, Any]
"""One JSON object of a file."""


@dataclass(frozen=True)
class Asked:
    """How a question was asked, as far as the file tells; None where it does not.

    Attributes
    ----------
    mode, system, template
        As in ``vlm.prompt``.
    min_pixels, max_pixels
        Limits of the picture's area at resizing.
    resized_first
        Whether the engine was given a picture that had been resized to these limits, as
        Look-Back's evaluation does, and then resized it again to whole visual tokens.
    messages
        The chat messages, with ``{"type": "image"}`` where the picture goes.
    prompt
        The whole text of the prompt, as a chat template has written it.
    version
        Look-Back's version of the prompt, where the file names it without its words.
    """

    mode: str | None = None
    system: str | None = None
    template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_first: bool = False
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Response:
    """An answer that some engine gave to a question.

    Attributes
    ----------
    question
        What was asked. Its ``image`` is empty where the file names none; ``problem`` says why the
        record cannot be used.
    text
        The answer.
    token_ids
        Ids of its tokens, where the file has them.
    id
        Its identifier in the file, else its line. Several answers in one record have it with their
        numbers: ``7``, ``7 (2)``.
    has_id
        Whether the file gives it an identifier, after which its picture may be named. A number
        that an engine gave to its request is none.
    asked
        How it was asked.
    fields
        The other fields of the record, such as a category.
    finished
        Whether the answer ended by itself (True) or was cut at a longest length (False); None
        where the file does not tell.
    prompt_digest
        ``digest`` of the ids of the prompt's tokens; empty where the file does not have them.
    """

    question: Question
    text: str
    token_ids: tuple[int, ...] | None = None
    id: str = ""
    asked: Asked = field(default_factory=Asked)
    fields: Mapping[str, Any] = field(default_factory=dict)
    finished: bool | None = None
    prompt_digest: str = ""
    has_id: bool = False

    @property
    def place(self) -> str:
        """Its line and its identifier, for messages."""
        return place_of(self.question.line, self.id)


def place_of(line: int | None, id: str) -> str:
    """Name an answer in a message by its line and its identifier."""
    name = shortened(repr(id), 80)
    if line is None:
        return f"answer {name}"
    return f"line {line}" if id == str(line) else f"line {line} (id {name})"


def spool_responses(responses: Iterable[Response] = ()) -> Spool[Response]:
    """Keep responses on disk."""
    return Spool(_of_fields, responses)


def _of_fields(fields: Mapping[str, Any]) -> Response:
    ids = fields["token_ids"]
    parts = {"question": Question(**fields["question"]), "asked": Asked(**fields["asked"])}
    return Response(**{**fields, **parts, "token_ids": None if ids is None else tuple(ids)})


@dataclass(frozen=True)
class Answer:
    """What a format finds in a record: the attributes of ``Response`` before they are checked.

    ``picture`` is what stands for the picture in the record; ``request`` is the engine's own number
    of the request, which is the identifier where the record has none; ``used`` are the fields that
    are not to be kept in ``Response.fields``, and ``extra`` is what is added to these.
    """

    question: Any
    text: Any
    token_ids: Any = None
    id: Any = None
    request: Any = None
    truth: Any = None
    picture: Any = None
    asked: Asked = field(default_factory=Asked)
    finished: bool | None = None
    prompt_ids: Any = None
    used: Iterable[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Field(NamedTuple):
    """A field by which a format is recognised.

    Attributes
    ----------
    names
        Its names, one of which is there.
    kind
        The type of its value.
    """

    names: tuple[str, ...]
    kind: type = object


@dataclass(frozen=True)
class Format:
    """A format of files of answers.

    Attributes
    ----------
    name
        For ``--format`` and messages.
    fields
        Its fields, for messages.
    needs
        The fields that every record of it has.
    read
        Finds the answers in a record; raises ``InputError`` where it cannot.
    container
        Name of the list of records in a file that is one JSON object; empty where there is none.
    asked
        Reads from such an object how all its questions were asked.
    """

    name: str
    fields: str
    needs: tuple[Field, ...]
    read: Callable[[Record], list[Answer]]
    container: str = ""
    asked: Callable[[Record], Asked] | None = None

    def matches(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return all(
            any(name in record and isinstance(record[name], kind) for name in names)
            for names, kind in self.needs
        )

    def lacks(self, record: Record) -> list[str]:
        """Return the names of the fields that a record lacks."""
        return [names[0] for names, _ in self.needs if not any(name in record for name in names)]

    def problem(self, record: Record) -> str:
        """Say why a record is not of this format."""
        there = shortened(", ".join(map(repr, record)), 80) or "nothing"
        missing = self.lacks(record)
        if missing:
            named = " and ".join(map(repr, missing))
            return f"is not of the format {self.name}: it lacks {named}; it has {there}"
        for names, kind in self.needs:
            for name in names:
                if name in record and not isinstance(record[name], kind):
                    return f"{name!r} is {shown(record[name])}: give {self.fields}"
        return f"is not of the format {self.name}; it has {there}"


def digest(ids: Sequence[int]) -> str:
    """Return what identifies a sequence of token ids: its length and a hash."""
    text = ",".join(map(str, ids))
    return f"{len(ids):,} tokens, {hashlib.sha256(text.encode()).hexdigest()}"


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    return "null" if value is None else shortened(repr(value), 80)


def needed(record: Record, name: str) -> Any:
    """Return a field of a record, or raise ``InputError`` with the names of those it has."""
    if record.get(name) is None:
        if name in record:
            raise InputError(f"{name!r} is null")
        there = shortened(", ".join(map(repr, record)), 80) or "nothing"
        raise InputError(f"has no {name!r}; it has {there}")
    return record[name]


def checked_text(name: str, value: Any) -> str:
    """Return a text that can be written as UTF-8, or raise ``InputError``."""
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {shown(value)}: give a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} holds half a character") from error
    return value


def whole_prompt(prompt: Any) -> Asked:
    """Return how a question was asked by the text of its prompt, where there is one."""
    return Asked(prompt=None if prompt is None else checked_text("prompt", prompt))


_TURN = re.compile(
    r"<\|im_start\|>user\n((?:(?!<\|im_start\|>).)*)<\|im_end\|>\n<\|im_start\|>assistant\n"
    r"(?:(?!<\|im_start\|>|<\|im_end\|>).)*\Z",
    re.DOTALL,
)
"""The user's last turn in the text of a prompt with ChatML's tags (Qwen and others)."""
_SHOWN = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)*<\|vision_end\|>")
"""Where Qwen's templates show a picture."""


def user_text(prompt: Any) -> Any:
    """Return the user's text in the text of a prompt; all of it where its tags are not known."""
    turn = _TURN.search(prompt) if isinstance(prompt, str) else None
    if turn is None:
        return prompt
    text = _SHOWN.sub("", turn[1])
    return prompt if "<|" in text else text


def checked_ids(name: str, value: Any) -> list[int] | None:
    """Return token ids, or raise ``InputError``; None for none."""
    if value is None:
        return None
    if not isinstance(value, list) or {*map(type, value)} - {int} or min(value, default=0) < 0:
        raise InputError(f"{name!r} is {shortened(repr(value), 80)}: give a list of token ids")
    return value


def checked_truth(value: Any) -> str | None:
    """Return the right answer as a text, or raise ``InputError``; None where there is none."""
    if value is None or value == "":
        return None
    try:
        return true_answer(value)
    except InputError as error:
        shown = shortened(repr(value), 80)
        raise InputError(f"the right answer is {shown}: give a text or a number") from error


def ended(reason: Any, *, by_token: bool = True) -> bool | None:
    """Read a ``finish_reason``: True for ``stop``, False for ``length``, else None.

    ``by_token`` is False where a stop string ended the answer, which says nothing of its end.
    """
    if reason == "stop":
        return True if by_token else None
    return False if reason == "length" else None
