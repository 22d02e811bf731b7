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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from attnlens.errors import InputError
from attnlens.models.modes import MODE_NAMES
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.reports.notes import NOTE, differences, is_whole, read_note
from attnlens.text import one_line

MOST_DIFFERENCES = 3
"""How many kinds of changes of settings are shown."""


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


def is_apart(name: str) -> bool:
    """Whether a folder of that name holds what belongs to runs and is none of its own."""
    return name == LONG or any(name in (mode + TWINS, mode + ANSWERS) for mode in MODE_NAMES)


def is_run(name: str) -> bool:
    """Whether a trace of that name was written by a command, as the run of a mode."""
    return any(name == f"{mode}_trace.zarr" for mode in MODE_NAMES)


def find_runs(root: Path) -> list[Path]:
    """Return the traces (``*.zarr``) at any depth of a folder that are runs of their own, sorted.

    Folders of twins, sampled and long answers are left out, and hidden ones, which a killed process
    may leave. Traces that a command has named after a mode are runs, whatever their folder's name.
    """
    found = []
    for path in root.rglob("*.zarr"):
        above = path.relative_to(root).parts[:-1]
        hidden = any(part.startswith(".") for part in (*above, path.name))
        apart = not is_run(path.name) and any(map(is_apart, above))
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


def remove_leftover_files(path: Path) -> None:
    """Clear away what a killed process left beside a file that it was writing."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    names = re.compile(rf"\.{stem}-[a-z0-9_]{{8}}{suffix}")
    for left in list(path.parent.iterdir()):
        if names.fullmatch(left.name) and left.is_file():
            left.unlink()


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
    damaged = 0
    for job in jobs:
        path = folder_of(job) / name
        found = read_note(path)
        if found and not serves(found, notes[job.line]):
            changed[", ".join(differences(found, notes[job.line]))] += 1
        elif found and is_whole(path):
            before.append(job)
            continue
        else:
            # a note of the command's own name is all that tells this mode's files from another's
            damaged += path.exists() or (name == NOTE and path.parent.exists())
        waiting.append(job)
    here = f"attnlens {command}: {{}} of {len(jobs)} questions"
    if before:
        print(f"{here.format(len(before))} were done before", file=sys.stderr)
    if damaged:
        print(
            f"{here.format(damaged)} are there in part or damaged, and made again", file=sys.stderr
        )
    if changed:
        said = "; ".join(text for text, _ in changed.most_common(MOST_DIFFERENCES))
        if len(changed) > MOST_DIFFERENCES:
            said += "; ..."
        text = (
            f"{here.format(changed.total())} were done with other settings, and what follows from "
            f"these is made again: {said}"
        )
        print(one_line(text), file=sys.stderr)
    return before, waiting


def say(bar: Any, text: str, stream: TextIO) -> None:
    """Print a line above the progress bar."""
    bar.write(one_line(text), file=stream)
