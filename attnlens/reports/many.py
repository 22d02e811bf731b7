"""Many questions of a file: one after the other, each kept as soon as it is done.

What a question leaves behind is a folder with a note of what it was made with. When the command is
given again, a folder whose note says the same is left as it is, and everything else is done.
"""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attnlens
from attnlens.errors import InputError
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.vlm.load import VLM

NOTE = "settings.json"
"""Name of the file that holds a note, in folders that are a command's own."""
FILES = "files"
"""Under which name a note lists what lies beside it."""
LONGEST_DIFFERENCE = 60
"""Longest pair of values that is shown where a setting has changed, in characters."""
MOST_DIFFERENCES = 3
"""How many kinds of changes of settings are shown."""


def note_of(job: Job, settings: Any, *, leaving_out: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that a question's results follow from, as plain values.

    Parameters
    ----------
    job
        The question.
    settings
        The command's settings, a dataclass.
    leaving_out
        Names of settings that results do not follow from.
    """
    kept = {name: value for name, value in asdict(settings).items() if name not in leaving_out}
    asked = {
        "image_sha256": job.image_sha256,
        "question": job.question,
        "answer": job.answer,
    }
    return {"attnlens": attnlens.__version__, **asked, "settings": kept}


def model_note(vlm: VLM) -> dict[str, Any]:
    """Return what a model and the libraries under it are, as far as results follow from it.

    Of a folder's weights: names, sizes and times of change, which are cheap to ask.
    """
    parameter = next(vlm.model.parameters())
    folder = Path(vlm.name)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return {
        "name": vlm.name,
        "weights": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in weights],
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        **{name: version(name) for name in ("torch", "transformers")},
    }


def write_note(
    path: Path, note: Mapping[str, Any], *, beginning: str = "", shared: Sequence[str] = ()
) -> None:
    """Write a note into a folder that is being made, with the sizes of what lies beside it.

    Parameters
    ----------
    path
        The file.
    note
        What the results follow from.
    beginning
        Of the names of files and folders that are the note's own.
    shared
        Names without ending of files that others write too, with other endings perhaps: it is only
        noted that there is one.
    """
    sizes: dict[str, int | None] = {}
    for file in sorted(path.parent.rglob("*")):
        name = file.relative_to(path.parent)
        if not file.is_file() or name == Path(path.name):
            continue
        if name.parts[0].startswith(beginning):
            sizes[name.as_posix()] = file.stat().st_size
        elif name.stem in shared:
            sizes[f"{name.stem}.*"] = None
    text = json.dumps({**note, FILES: sizes}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_note(path: Path) -> dict[str, Any]:
    """Read a note, without its list of files; empty where there is none."""
    return {name: value for name, value in _read(path).items() if name != FILES}


def is_whole(path: Path) -> bool:
    """Whether everything that lay beside a note when it was written still does."""
    files = _read(path).get(FILES)
    if not isinstance(files, dict):
        return False
    for name, size in files.items():
        try:
            if size is None:
                there = any(file.stat().st_size for file in path.parent.glob(name))
            else:
                there = (path.parent / name).stat().st_size == size
        except OSError:
            return False
        if not there:
            return False
    return True


@contextmanager
def made_again(note: Path) -> Iterator[None]:
    """Take away the note of results that turn out to be unreadable: they are made anew next time.

    Raises
    ------
    InputError
        As inside the block, with advice.
    """
    try:
        yield
    except InputError as error:
        note.unlink(missing_ok=True)
        raise InputError(f"{error}. Give the same command again: it is made anew") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in what two notes differ: the names of settings, and both values where they are short."""
    flat = [_flat(before), _flat(now)]
    said = []
    for name in sorted({*flat[0], *flat[1]}):
        one, other = (values.get(name) for values in flat)
        if one != other:
            both = f"{one!r}, now {other!r}"
            said.append(f"{name} ({both})" if len(both) <= LONGEST_DIFFERENCE else name)
    return said


def _flat(note: Mapping[str, Any]) -> dict[str, Any]:
    """Name and value of everything in a note; ``model.dtype`` is that of a mapping inside."""
    found: dict[str, Any] = {}
    for name, value in note.items():
        inside = _flat(value) if isinstance(value, Mapping) else None
        found |= {name: value} if inside is None else {f"{name}.{n}": v for n, v in inside.items()}
    return found


def refuse_other_questions(jobs: Sequence[Job], root: Path, name: str) -> None:
    """Refuse a folder for results that holds the results of other questions under the same names.

    Raises
    ------
    InputError
        If a folder's note, a file of that name, has another question than its job.
    """
    for job in jobs:
        asked = read_note(root / job.folder / name).get("question")
        if asked is not None and asked != job.question:
            raise InputError(
                f"{str(root / job.folder)!r} holds the answer to another question ({asked!r}) than "
                f"line {job.line}: give another --save_folder, or move it away"
            )


TWINS, ANSWERS, LONG = "_twins", "_answers", "long"
"""Folders whose traces are not runs of their own: endings of the names of those of forced twins and
of sampled answers, and the name of that of long answers."""


def find_runs(root: Path) -> list[Path]:
    """Return the traces (``*.zarr``) at any depth of a folder that are runs of their own, sorted.

    Folders of twins, sampled and long answers are left out, and hidden ones, which a killed process
    may leave.
    """
    found = []
    for path in root.rglob("*.zarr"):
        above = path.relative_to(root).parts[:-1]
        hidden = any(part.startswith(".") for part in (*above, path.name))
        apart = any(part == LONG or part.endswith((TWINS, ANSWERS)) for part in above)
        if path.is_dir() and not hidden and not apart:
            found.append(path)
    return sorted(found)


def remove_leftovers(folder: Path) -> None:
    """Clear away what a killed process left beside a folder that it was writing.

    A folder is set aside only when the new one is complete: then that one is moved in.
    """
    if not folder.parent.is_dir():
        return
    names = re.compile(rf"\.{re.escape(folder.name)}-[a-z0-9_]{{8}}(-old)?")
    left = [p for p in folder.parent.iterdir() if names.fullmatch(p.name) and p.is_dir()]
    for path in sorted(left, reverse=True):
        if path.name.endswith("-old") and not folder.exists():
            new = path.with_name(path.name.removesuffix("-old"))
            os.replace(new if new.is_dir() else path, folder)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def run_each(
    jobs: Sequence[Job],
    folder_of: Callable[[Job], Path],
    note_of_job: Callable[[Job], Mapping[str, Any]],
    work: Callable[[Job, dict[str, Any]], object],
    *,
    command: str,
    name: str = NOTE,
    serves: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = operator.eq,
) -> list[Job]:
    """Do what is not done yet; a question that fails is reported, and the others go on.

    Parameters
    ----------
    jobs
        The questions of a file.
    root
    folder_of
        Where a question's results go.
    note_of_job
        What they follow from: they are there if their folder's note says the same, and everything
        that lay beside it still does.
    work
        Makes them, and writes the note that it is given beside them.
    command
        Name of the command, for messages.
    name
        Of the file that holds the note.
    serves
        Whether results with one note serve for another; when they are the same unless told.

    Returns
    -------
    list of Job
        Those whose results are there now.
    """
    for job in jobs:
        remove_leftovers(folder_of(job))
    # as JSON reads them back, so that they compare equal
    notes = {job.line: json.loads(json.dumps(note_of_job(job))) for job in jobs}
    before, waiting = _sorted(jobs, folder_of, notes, command, name, serves)
    failed: set[int | None] = set()
    bar = progress(waiting, total=len(jobs), initial=len(before), description="questions")
    for job in bar:
        try:
            work(job, notes[job.line])
        except Exception as error:  # one question must not take the others with it
            say(bar, f"attnlens {command}: line {job.line} failed: {error}", sys.stderr)
            failed.add(job.line)
        else:
            say(bar, f"written to {folder_of(job)}", sys.stdout)
    return [job for job in jobs if job.line not in failed]


def _sorted(
    jobs: Sequence[Job],
    folder_of: Callable[[Job], Path],
    notes: Mapping[int | None, Mapping[str, Any]],
    command: str,
    name: str,
    serves: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
) -> tuple[list[Job], list[Job]]:
    """Tell what is done from what waits, and say how much of each there is."""
    before: list[Job] = []
    waiting: list[Job] = []
    changed: Counter[str] = Counter()
    for job in jobs:
        path = folder_of(job) / name
        found = read_note(path)
        if not found or serves(found, notes[job.line]):
            (before if found and is_whole(path) else waiting).append(job)
        else:
            waiting.append(job)
            changed[", ".join(differences(found, notes[job.line]))] += 1
    if before:
        print(f"{len(before)} of {len(jobs)} questions were done before", file=sys.stderr)
    if changed:
        said = "; ".join(text for text, _ in changed.most_common(MOST_DIFFERENCES))
        if len(changed) > MOST_DIFFERENCES:
            said += "; ..."
        text = (
            f"attnlens {command}: {changed.total()} of {len(jobs)} questions were done with other "
            f"settings, and what follows from these is made again: {said}"
        )
        print(one_line(text), file=sys.stderr)
    return before, waiting


def say(bar: Any, text: str, stream: TextIO) -> None:
    """Print a line above the progress bar."""
    bar.write(one_line(text), file=stream)
