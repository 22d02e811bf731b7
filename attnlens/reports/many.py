"""Many questions of a file: one after the other, each kept as soon as it is done.

What a question leaves behind is a folder with a note of what it was made with. When the command is
given again, a folder whose note says the same is left as it is, and everything else is done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import attnlens
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.text import one_line


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
    # as JSON reads it back, so that notes compare equal
    note: dict[str, Any] = json.loads(
        json.dumps({"attnlens": attnlens.__version__, **asked, "settings": kept})
    )
    return note


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write a note into a folder that is being made."""
    path.write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_done(path: Path, note: Mapping[str, Any]) -> bool:
    """Whether a folder was made with the same: its note is there and says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == note)


def remove_leftovers(folder: Path) -> None:
    """Clear away what a killed process left beside a folder that it was writing.

    A folder that was set aside when the process ended is put back.
    """
    if not folder.parent.is_dir():
        return
    names = re.compile(rf"\.{re.escape(folder.name)}-[a-z0-9_]{{8}}(-old)?")
    left = [p for p in folder.parent.iterdir() if names.fullmatch(p.name) and p.is_dir()]
    for path in left:
        if path.name.endswith("-old") and not folder.exists():
            os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def run_each(
    jobs: Sequence[Job],
    folder_of: Callable[[Job], Path],
    done: Callable[[Job], bool],
    work: Callable[[Job], object],
    *,
    command: str,
) -> list[Job]:
    """Do what is not done yet; a question that fails is reported, and the others go on.

    Parameters
    ----------
    jobs
        The questions of a file.
    folder_of
        Where a question's results go.
    done
        Whether they are there.
    work
        Makes them.
    command
        Name of the command, for messages.

    Returns
    -------
    list of Job
        Those whose results are there now.
    """
    for job in jobs:
        remove_leftovers(folder_of(job))
    before = [job for job in jobs if done(job)]
    waiting = [job for job in jobs if job not in before]
    if before:
        print(f"{len(before)} of {len(jobs)} questions were done before", file=sys.stderr)
    failed = []
    bar = progress(waiting, total=len(jobs), initial=len(before), description="questions")
    for job in bar:
        try:
            work(job)
        except Exception as error:  # one question must not take the others with it
            say(bar, f"attnlens {command}: line {job.line} failed: {error}", sys.stderr)
            failed.append(job)
        else:
            say(bar, f"written to {folder_of(job)}", sys.stdout)
    return [job for job in jobs if job not in failed]


def say(bar: Any, text: str, stream: TextIO) -> None:
    """Print a line above the progress bar."""
    bar.write(one_line(text), file=stream)
