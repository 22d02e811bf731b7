"""Results of questions: each is kept in its own folder as soon as it is made.

An entry's folder holds the results and a file ``settings.json`` with everything that they follow
from, the hash of that (the key), and the sizes of the files. A command that is given again makes
only the entries with another key, or with a file missing. Each entry is written to a
temporary folder and renamed, so that a killed process leaves no half entry behind. Into a store,
which cannot rename, ``settings.json`` is put last.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from filelock import FileLock, Timeout

from attnlens.errors import InputError
from attnlens.files import clear_leftover_folders, write_file, write_folder
from attnlens.progress import progress
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import canonical, differences
from attnlens.runs.spool import Lazy
from attnlens.runs.workers import Workers
from attnlens.stores import files_in, has_sizes, is_store, read_bytes
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.runs.settings import PromptSettings

SETTINGS = "settings.json"
"""Name of the file that says what an entry follows from."""
LOCK = ".attnlens-lock"
"""Name of the file that a process locks while it writes into a folder."""
MOST_DIFFERENCES = 3
"""How many kinds of changed settings are printed."""


@dataclass(frozen=True)
class Entry:
    """A folder of results, and what they must follow from.

    Attributes
    ----------
    folder
        The folder.
    settings
        Everything that the results follow from, as plain values; ``question`` is the question.
    needs
        Names of results that must be there, where an entry may hold fewer or more.
    """

    folder: Path
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Hash of the settings."""
        return hashlib.sha256(canonical(self.settings).encode()).hexdigest()

    def note(self) -> dict[str, Any]:
        """Read ``settings.json``; empty if there is none."""
        try:
            found = json.loads(read_bytes(self.folder / SETTINGS))
        except (OSError, ValueError) as error:
            if is_store(self.folder) and not isinstance(error, FileNotFoundError | ValueError):
                raise  # a network that fails says nothing of what is there
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def identity(self) -> str:
        """Identifier of these results; it changes when they are made again."""
        return str(self.note().get("id", ""))

    def has_key(self) -> bool:
        """Whether the folder holds results of these settings, with no file missing or cut."""
        note = self.note()
        sizes = note.get("files")
        if note.get("key") != self.key or not isinstance(sizes, dict):
            return False
        return has_sizes(self.folder, sizes)

    def is_there(self) -> bool:
        """Whether nothing is left to make."""
        return self.has_key() and all((self.folder / name).exists() for name in self.needs)

    @contextmanager
    def write(self) -> Iterator[Path]:
        """Give a temporary folder that becomes the entry when the block ends without error."""
        with write_folder(self.folder, replace=True, last=SETTINGS) as temporary:
            yield temporary
            files = (path for path in sorted(temporary.rglob("*")) if path.is_file())
            note = {
                "key": self.key,
                "id": uuid.uuid4().hex,
                "settings": self.settings,
                "files": {p.relative_to(temporary).as_posix(): p.stat().st_size for p in files},
            }
            text = json.dumps(note, indent=2, ensure_ascii=False)
            (temporary / SETTINGS).write_text(text + "\n", encoding="utf-8")

    @contextmanager
    def reading(self) -> Iterator[Path]:
        """Give the folder; if its results turn out to be unreadable, they are made again next time.

        Raises
        ------
        InputError
            As inside the block, with this advice.
        """
        try:
            yield self.folder
        except InputError as error:
            note = {name: value for name, value in self.note().items() if name != "key"}
            with write_file(self.folder / SETTINGS) as temporary:
                temporary.write_text(json.dumps(note), encoding="utf-8")
            raise InputError(f"{error}. Give the same command again to make it again") from error


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes of attnlens out of a folder for the time of a block.

    Parameters
    ----------
    folder
        Where results go; made where it is missing, and removed again if it stays empty.

    Raises
    ------
    InputError
        If another process is writing there. Of a store that cannot be known.
    """
    if is_store(folder):
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another attnlens is at work in {str(folder)!r}: wait for it to end, or give "
            "another --save_folder"
        ) from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows keeps the file while it is open
            path.unlink(missing_ok=True)  # while the lock is still ours
        lock.release()
        if made:
            with suppress(OSError):  # it holds results
                folder.rmdir()


@dataclass(frozen=True)
class Run:
    """Results of a question.

    Attributes
    ----------
    question, settings
        What is asked, and how.
    entry
        Where its results go, and what they follow from.
    make
        Takes the loaded model and a folder, and writes the results there. It can be pickled:
        another process may call it.
    """

    question: Question
    settings: PromptSettings
    entry: Entry
    make: Callable[[Any, Path], object]


def make_each(runs: Collection[Run], workers: Workers, *, command: str) -> Collection[Run]:
    """Make the results that are not there yet; a question that fails is reported and passed over.

    Parameters
    ----------
    runs
        What is made. They are gone through several times, always in the same order, and none is
        kept, so that memory does not grow with their number.
    workers
        Who does it.
    command
        Name of the command, for messages.

    Returns
    -------
    collection of Run
        Those that now have results.

    Raises
    ------
    InputError
        If a folder holds the answer to another question, or something else than results, before
        anything is made.
    """
    folders = Lazy(lambda: (run.entry.folder for run in runs), len(runs))
    clear_leftover_folders(folders)
    for run in runs:
        _refuse_foreign_results(run.question, run.entry)
    waiting = _waiting(runs, command)
    at_work: dict[int, Run] = {}
    failed: set[int] = set()

    def jobs() -> Iterator[partial[None]]:
        for number, run in enumerate(_at(waiting, runs)):
            at_work[number] = run
            yield partial(_make, run.entry, run.make)

    done = len(runs) - len(waiting)
    with progress(total=len(runs), initial=done, description="questions") as bar:
        for one in workers.run(jobs()):
            run = at_work.pop(one.number)
            for line in one.said.splitlines():
                _print(bar, line, sys.stderr)
            if one.problem:
                text = f"attnlens {command}: line {run.question.line} failed: {one.problem}"
                _print(bar, text, sys.stderr)
                failed.add(waiting[one.number])
            else:
                _print(bar, f"written to {run.entry.folder}", sys.stdout)
            bar.update()
    if waiting:
        clear_leftover_folders(folders)  # of workers that were killed
    there = array("q", (place for place in range(len(runs)) if place not in failed))
    return Lazy(lambda: _at(there, runs), len(there))


def _at(places: Sequence[int], runs: Collection[Run]) -> Iterator[Run]:
    """Give the runs at some places, in order, with settings that compare as JSON's do."""
    before, left = -1, iter(runs)
    for place in places:
        yield _as_json(next(islice(left, place - before - 1, None)))
        before = place


def _as_json(run: Run) -> Run:
    """Return a run whose settings are as JSON reads them back, so that they compare equal."""
    entry = run.entry
    return replace(run, entry=replace(entry, settings=json.loads(canonical(entry.settings))))


def _make(entry: Entry, make: Callable[[Any, Path], object], vlm: Any) -> None:
    with entry.write() as folder:
        make(vlm, folder)


def _refuse_foreign_results(question: Question, entry: Entry) -> None:
    note = entry.note()
    if not note and _is_foreign(entry.folder):
        raise InputError(
            f"{str(entry.folder)!r} holds something other than the results of a question: give "
            "another --save_folder, or move it away"
        )
    before = note.get("settings")
    asked = before.get("question") if isinstance(before, dict) else None
    if asked is not None and asked != question.text:
        raise InputError(
            f"{str(entry.folder)!r} holds the answer to another question ({asked!r}) than "
            f"line {question.line}: give another --save_folder, or move it away"
        )


def _is_foreign(folder: Path) -> bool:
    """Whether there is something that no entry has been written over."""
    if is_store(folder):
        found = files_in(folder)
        return bool(found) and SETTINGS not in found
    if not folder.is_dir():
        return folder.exists()
    return any(folder.iterdir()) and not (folder / SETTINGS).exists()


def _waiting(runs: Collection[Run], command: str) -> array[int]:
    """Find the places of runs without results, and print how many there are, and why."""
    waiting = array("q")
    changed: Counter[str] = Counter()
    damaged = 0
    for place, run in enumerate(runs):
        entry = _as_json(run).entry
        if entry.is_there():
            continue
        waiting.append(place)
        note = entry.note()
        if "key" in note and note["key"] != entry.key:
            changed[", ".join(differences(note.get("settings") or {}, entry.settings))] += 1
        elif entry.folder.exists() and not entry.has_key():
            damaged += 1
    here = f"attnlens {command}: {{}} of {len(runs)} questions"
    done = len(runs) - len(waiting)
    if done:
        print(f"{here.format(done)} were done before", file=sys.stderr)
    if damaged:
        print(
            f"{here.format(damaged)} are there in part or damaged, and made again", file=sys.stderr
        )
    if changed:
        kinds = "; ".join(text for text, _ in changed.most_common(MOST_DIFFERENCES))
        more = "; ..." if len(changed) > MOST_DIFFERENCES else ""
        text = (
            f"{here.format(changed.total())} were done with other settings and are made again: "
            f"{kinds}{more}"
        )
        print(one_line(text), file=sys.stderr)
    return waiting


def _print(bar: Any, text: str, stream: TextIO) -> None:
    """Print a line above the progress bar."""
    bar.write(one_line(text), file=stream)
