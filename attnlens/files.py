"""Files and folders that are either written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attnlens.errors import InputError
from attnlens.stores import (
    check_store,
    clear_unfinished,
    files_in,
    is_store,
    is_unfinished,
    put_file,
    put_folder,
    reaching,
    remove_stored,
)


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not os.path.lexists(path):  # False, not an error, for names that are too long
        path = path.parent
    return path


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written into, without creating anything.

    Raises
    ------
    InputError
        If the folder (or, where it does not exist, the nearest one above) is a file or read-only;
        or if a store does not take a file there, which is then removed again.
    """
    if is_store(folder):
        check_store(folder)
        return
    if any(len(part.encode()) > 255 for part in Path(folder).parts):
        raise InputError(f"cannot write into {str(folder)!r}: the name is too long")
    anchor = nearest_existing(Path(folder))
    if not anchor.is_dir():
        raise InputError(f"cannot write into {str(folder)!r}: {str(anchor)!r} is not a folder")
    if not os.access(anchor, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write into {str(folder)!r}: no permission to write in {str(anchor)!r}"
        )


def check_results(folder: Path, marker: str, what: str) -> None:
    """Refuse a folder for results that cannot be written or holds something else.

    Parameters
    ----------
    folder
        The folder; it need not exist.
    marker
        File that every folder of such results has.
    what
        Kind of results, for the message.

    Raises
    ------
    InputError
        If it cannot be written, or exists without ``marker``.
    """
    if is_store(folder):
        with reaching(folder):
            there = files_in(folder)
        foreign = bool(there) and marker not in there and not is_unfinished(folder)
    else:
        foreign = folder.exists() and not (folder / marker).is_file()
    if foreign:
        raise InputError(f"{str(folder)!r} holds something other than {what}: move it away")
    check_writable(folder)


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Give a temporary path next to ``path`` and rename it when the block ends without error.

    The temporary name keeps the suffix, since writers choose their format by it. Where ``path`` is
    in a store, the file is local and then put there.
    """
    if is_store(path):
        with tempfile.TemporaryDirectory(prefix="attnlens-") as folder:
            yield Path(folder) / path.name
            put_file(Path(folder) / path.name, path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Refuse, before any long work, a path at which no file can be written.

    Raises
    ------
    InputError
        If the path is that of a folder, has no usable name, or its folder cannot be written.
    """
    if not path.name or path.is_dir() or len(path.name.encode()) > 240:
        raise InputError(f"cannot write a file {str(path)!r}: give the name of one")
    check_writable(path.parent)


@contextmanager
def write_folder(path: Path, *, replace: bool = False, last: str = "") -> Iterator[Path]:
    """Give a temporary folder next to ``path`` and rename it when the block ends without error.

    Where ``path`` is in a store, the folder is local and its files are then put there.

    Parameters
    ----------
    path
        The folder to write.
    replace
        Whether to replace an existing folder; it is removed once the new one is complete.
    last
        Name of the file that a reader looks for first: a store, which cannot rename, gets it last.

    Raises
    ------
    InputError
        If the folder exists, is not empty and ``replace`` is not set.
    """
    if is_store(path):
        if not replace and files_in(path):
            raise InputError(f"{str(path)!r} exists already: give a new folder")
        with tempfile.TemporaryDirectory(prefix="attnlens-") as folder:
            yield Path(folder)
            put_folder(Path(folder), path, last)
        return
    path = Path(path)
    check_writable(path)
    if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{str(path)!r} exists already: give a new folder")
    path = path.resolve()  # a link to a folder stays, and what it points to is replaced
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        old = temporary.with_name(f"{temporary.name}-old")
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
        if old.exists():
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Give a folder next to another one, where that is seen, for the time of the block.

    What a killed process leaves of it is cleared away with that of ``write_folder``; in a store,
    the next time that this function is called, since the folder has the same name there.
    """
    if is_store(beside):
        folder = beside.parent / f".{beside.name}-scratch"
        with reaching(folder):
            remove_stored(folder)
            try:
                yield folder
            finally:
                remove_stored(folder)
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}-", dir=beside.parent) as name:
        yield Path(name)


def clear_leftover_folders(folders: Iterable[Path]) -> None:
    """Clear away what a killed process left of ``write_folder``.

    The old folder is set aside only once the new one is complete, which is then put in its place.

    Parameters
    ----------
    folders
        Those that were written, all local or all in a store. They are gone through twice.
    """
    if is_store(next(iter(folders), None)):
        clear_unfinished(folders)
        return
    names = re.compile(r"\.(.+)-[a-z0-9_]{8}(-old)?", re.DOTALL)
    found: dict[Path, list[Path]] = {}
    for parent in {folder.parent for folder in folders}:  # each is listed once, however many
        if not parent.is_dir():
            continue
        with os.scandir(parent) as listed:
            for one in listed:
                name = names.fullmatch(one.name)
                if name and one.is_dir():
                    found.setdefault(parent / name[1], []).append(Path(one.path))
    left = [(path, folder) for folder in folders if found for path in found.pop(folder, ())]
    for path, folder in sorted(left, reverse=True):
        if path.name.endswith("-old") and not folder.exists():
            new = path.with_name(path.name.removesuffix("-old"))
            os.replace(new if new.is_dir() else path, folder)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def clear_leftover_files(path: Path) -> None:
    """Clear away what a killed process left of ``write_file``: nothing in a store."""
    if is_store(path):
        return
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    names = re.compile(rf"\.{stem}-[a-z0-9_]{{8}}{suffix}")
    for left in list(path.parent.iterdir()):
        if names.fullmatch(left.name) and left.is_file():
            left.unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder that is there."""
    if is_store(path):
        remove_stored(path)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _umask() -> int:
    """Return the process's file mode mask, which mkstemp does not apply."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
