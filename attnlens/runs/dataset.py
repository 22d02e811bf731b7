"""Questions to ask: one from the command line, or many from a JSON Lines file."""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from attnlens.answers import true_answer
from attnlens.errors import InputError
from attnlens.progress import progress
from attnlens.runs.spool import Spool
from attnlens.stores import beside, local_copy, located
from attnlens.text import one_line, quoted, shortened

LONGEST_NAME = 200
"""Longest name of a results folder, in bytes; its temporary names are a little longer."""


@dataclass(frozen=True)
class Question:
    """One question about one image or video.

    Attributes
    ----------
    image, text
        Path of the image or video, and what is asked about it.
    answer
        The right answer, where it is known.
    line
        Line of the file, counted from 1; None for a question from the command line.
    problem
        Why the line cannot be used; empty where it can.
    image_sha256
        Hash of the image's file, or of what is shown of a video; empty until ``check_questions``
        has opened it.
    is_video
        Whether it is a video.
    """

    image: str
    text: str
    answer: str | None = None
    line: int | None = None
    problem: str = ""
    image_sha256: str = ""
    is_video: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder for the results."""
        stem = Path(self.image).stem
        return stem if self.line is None else f"{self.line:05d}_{stem}"


def spool_questions(questions: Iterable[Question] = ()) -> Spool[Question]:
    """Keep questions on disk."""
    return Spool(lambda fields: Question(**fields), questions)


def read_questions(path: str | Path) -> Spool[Question]:
    """Read a JSON Lines file of ``{"image": ..., "question": ..., "answer": ...}``.

    ``"video"`` may take the place of ``"image"``.

    Parameters
    ----------
    path
        The file. Image paths are relative to its folder.

    Returns
    -------
    Spool
        A question for each line that is not empty; a line that cannot be read has a ``problem``.

    Raises
    ------
    InputError
        If the file cannot be read or holds no line.
    """
    path = located(path)
    questions = spool_questions()
    try:
        with local_copy(path) as local, local.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    questions.append(_question(number, text, path.parent))
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error.strerror or error}): give a JSON Lines file"
        ) from error
    if not questions:
        raise InputError(f'{str(path)!r} is empty: give lines of {{"image": ..., "question": ...}}')
    return questions


def _question(number: int, line: bytes, folder: Path) -> Question:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _bad(number, f"is not UTF-8 (byte {error.start + 1} of it)")
    except (ValueError, RecursionError) as error:
        return _bad(number, f"is not valid JSON ({error})")
    if not isinstance(value, dict):
        return _bad(number, 'is not a JSON object: write {"image": ..., "question": ...}')
    value = {k: v for k, v in value.items() if k not in ("image", "video") or v is not None}
    if "video" in value and "image" in value:
        return _bad(number, "has 'image' and 'video': give one of them")
    for name in ("fps", "max_frames"):
        if name in value:
            return _bad(number, f"has {name!r}: give --{name}, which holds for all lines")
    visual = "video" if "video" in value else "image"
    for name in (visual, "question"):
        text = value.get(name)
        if name not in value:
            there = shortened(", ".join(map(repr, value)), 80) or "nothing"
            return _bad(number, f"has no {name!r}; it has {there}")
        if not isinstance(text, str) or not text.strip():
            return _bad(number, f"{name!r} is {shortened(repr(text), 80)}: give a text")
        if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            return _bad(number, f"{name!r} holds half a character")
    answer = value.get("answer")
    try:
        truth = None if answer is None else true_answer(answer)
    except InputError:
        shown = shortened(repr(answer), 80)
        return _bad(number, f"'answer' is {shown}: give a text or a number")
    return Question(
        image=beside(folder, value[visual]),
        text=value["question"],
        answer=truth,
        line=number,
        is_video=visual == "video",
    )


def _bad(number: int, problem: str) -> Question:
    return Question("", "", line=number, problem=problem)


def _check_folder_name(question: Question) -> None:
    """Refuse an image whose name cannot be that of a folder of results."""
    if question.image.lower().startswith("data:"):
        raise InputError(
            f"the image is given in the text itself ({shortened(question.image, 40)!r}), and its "
            "results go into a folder named after its file: save it as a file and give its path"
        )
    name = question.folder
    if name in ("", ".", "..") or len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"the results of {quoted(question.image)} would go into a folder named {quoted(name)}: "
            f"give the image a name of 1 to {LONGEST_NAME} bytes other than '.' and '..'"
        )


def check_questions(
    questions: Collection[Question], *, sampling: tuple[float | None, int | None] | None = None
) -> tuple[Spool[Question], int]:
    """Open every image before any long work starts.

    Parameters
    ----------
    questions
        What is to be asked.
    sampling
        ``fps`` and ``max_frames`` of videos; None where they cannot be asked about.

    Returns
    -------
    tuple
        The questions that can be asked, in their order, and how many lines of the file were
        skipped; each of these is reported on standard error with its number.

    Raises
    ------
    InputError
        If no question is left, or the only one, from the command line, cannot be asked.
    """
    good = spool_questions()
    problems = []
    # large pictures take long to decode
    for question in progress(questions, description="images") if len(questions) > 1 else questions:
        problem = question.problem
        if not problem:
            try:
                if not question.text.strip():
                    raise InputError("the question is empty: give the text of a question")
                _check_folder_name(question)
                digest = _digest(question, sampling)
            except InputError as error:
                if question.line is None:
                    raise
                problem = str(error)
        if problem:
            problems.append(f"line {question.line}: {problem}")
        else:
            good.append(replace(question, image_sha256=digest))
    if not good:
        raise InputError(f"no line can be used; {problems[0]}")
    for text in problems:
        print(one_line(f"attnlens: skipped {text}"), file=sys.stderr)
    return good, len(problems)


def _digest(question: Question, sampling: tuple[float | None, int | None] | None) -> str:
    """Open an image or a video, and return the hash of what is shown of it."""
    if not question.is_video:
        try:
            found = located(question.image).stat()
        except (OSError, ValueError):  # no file
            return _image_digest(question.image)
        return _image_digest(question.image, found.st_mtime_ns, found.st_size)
    if sampling is None:
        raise InputError(
            f"{quoted(question.image)} is a video, which only attnlens trend can be asked about"
        )
    from attnlens.models.videos import Video, open_video

    info = open_video(Video(question.image, *sampling), first_only=True)[1]
    shown = f"{info.sha256} {info.frames}"  # the same frames may be of another video
    return hashlib.sha256(shown.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _image_digest(image: str, *_: int) -> str:
    """Open an image once for all questions about it, as long as its file stays as it is."""
    from attnlens.models.images import open_image

    return open_image(image)[1].sha256
