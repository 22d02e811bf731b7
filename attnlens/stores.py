"""Object stores, such as ``s3://bucket/folder``, beside local paths: what fsspec can open.

``located`` alone decides which of the two a text names. Its path is a ``pathlib.Path`` or a
``UPath``, which has the same methods; ``is_store`` tells them apart where they need other steps.
Stores cannot rename, and a folder of theirs is no more than the beginning of some names: whoever
writes several files puts a note beside them until all are there.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

from attnlens.errors import InputError
from attnlens.text import one_line, quoted, shortened

INSTALL = "pip install attnlens[stores]"
_SCHEME = re.compile(r"(?i)[a-z][a-z0-9+.-]+://")  # C:// is a drive of Windows
_NEVER_FETCHED = ("http", "https", "ftp")
_UNFINISHED = "-unfinished"


def is_url(text: str) -> bool:
    """Whether a text is a URL, ``data:`` included, and no local path."""
    return text[:5].lower() == "data:" or _SCHEME.match(text) is not None


def is_store(path: object) -> bool:
    """Whether a path from ``located`` is in a store."""
    return hasattr(path, "storage_options")


def is_of_one_process(text: str) -> bool:
    """Whether a text names something that other processes do not see."""
    return text.lower().startswith("memory://")


def plain_path(source: str | Path) -> str:
    """Return the text of a path; of a ``file://`` URL, the path that it names.

    Raises
    ------
    InputError
        If it is on the web or on another machine.
    """
    scheme, _, rest = str(source).partition(":") if isinstance(source, str) else ("", "", "")
    if scheme.lower() in _NEVER_FETCHED and rest.startswith("//"):
        raise InputError(
            f"{quoted(str(source))} is on the network, and nothing is fetched from there: download "
            "it and give the path of the file"
        )
    if scheme.lower() == "file" and rest.startswith("//"):
        from urllib.request import url2pathname  # takes long to import

        host, _, _ = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise InputError(
                f"{quoted(str(source))} is on another machine: copy it and give its path"
            )
        return url2pathname(rest[2 + len(host) :])
    return str(source)


def located(source: str | Path) -> Path:
    """Return the path that a text names: a local one, or one in a store.

    Nothing is asked of the store yet.

    Raises
    ------
    InputError
        As ``plain_path``; or if it is a URL, and what opens it is not installed.
    """
    if not isinstance(source, str):
        return source if is_store(source) else Path(source)
    text = plain_path(source)
    if not _SCHEME.match(text):
        return Path(text)
    try:
        from upath import UPath
    except ImportError as error:
        raise InputError(f"{quoted(text)} is in an object store: {INSTALL}") from error
    try:
        # a listing that is kept would hide what another process writes
        path: Any = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018 (imports the store's own library)
    except Exception as error:  # each has errors of its own
        raise InputError(f"{quoted(text)} cannot be opened: {_reason(error)}") from error
    return path


def beside(folder: Path, name: str) -> str:
    """Return the path or URL of a file that is named relative to a folder, or in full."""
    if is_url(name):
        return name
    path = Path(name) if PurePath(name).is_absolute() else folder / name
    return str(path.resolve() if is_store(path) else path)  # stores do not know what .. means


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turn whatever a store raises in the block into one ``InputError`` that names the path."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each store has errors of its own
        if not is_store(path):
            raise
        raise InputError(
            f"{quoted(path)} cannot be reached ({_reason(error)}): check the name, and the "
            "credentials that fsspec is to use"
        ) from error


def _reason(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {one_line(str(error))}", 300)


def read_bytes(path: Path) -> bytes:
    """Read a file; from a store by a single request.

    Raises
    ------
    OSError
        If it cannot be read: ``FileNotFoundError`` if there is none.
    """
    if not is_store(path):
        return path.read_bytes()
    store: Any = path
    try:
        return store.fs.cat_file(store.path)
    except OSError:
        raise
    except Exception as error:  # each store has errors of its own
        raise OSError(f"{quoted(path)} cannot be read: {_reason(error)}") from error


def files_in(path: Path) -> dict[str, int]:
    """Return the size in bytes of each file below a folder of a store, by relative name.

    A path that is itself a file has the name ``""``.
    """
    store: Any = path
    root = store.path.rstrip("/")
    found = store.fs.find(root, detail=True)
    return {name[len(root) + 1 :]: one["size"] for name, one in found.items()}


def has_sizes(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether a folder has all these files, in these sizes in bytes."""
    if is_store(folder):
        return sizes.items() <= files_in(folder).items()
    try:
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file or folder as a local path: itself, or a copy for the time of the block.

    Raises
    ------
    InputError
        If it is in a store and cannot be read.
    """
    if not is_store(path):
        yield path
        return
    store: Any = path
    with tempfile.TemporaryDirectory(prefix="attnlens-") as temporary:
        copy = Path(temporary) / path.name
        with reaching(path):
            names = list(files_in(path))
            if not names:
                raise FileNotFoundError("there is nothing")
            for name in names:
                target = Path(os.path.abspath(copy / name))
                if not target.is_relative_to(copy):  # names may hold .. or begin with /
                    raise InputError(f"{quoted(path)} holds {quoted(name)}, which is no file in it")
                target.parent.mkdir(parents=True, exist_ok=True)
            store.fs.get(*_pairs(store, copy, names)[::-1])
        yield copy


def check_store(folder: Path) -> None:
    """Refuse a folder of a store that cannot be written: a small file is written and removed."""
    store: Any = folder / f".attnlens-{uuid4().hex}"
    with reaching(folder):
        store.fs.pipe_file(store.path, b"attnlens")
        store.fs.rm_file(store.path)


def put_file(file: Path, target: Path) -> None:
    """Put a local file into a store; what was there is replaced at once."""
    store: Any = target
    with reaching(target):
        store.fs.put_file(str(file), store.path)


def put_folder(folder: Path, target: Path, last: str) -> None:
    """Put the files of a local folder into a store, in place of all that was there.

    Parameters
    ----------
    folder, target
        The local folder, and that of the store.
    last
        Name of the file that says that the others are there: removed first, and put last.
    """
    store: Any = target
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    note: Any = _note(target)
    with reaching(target):
        before = files_in(target)
        store.fs.pipe_file(note.path, b"attnlens")
        if last in before:
            _remove_files(target, [last])
        store.fs.put(*_pairs(store, folder, sorted(names - {last})))
        _remove_files(target, sorted(set(before) - names - {last}))
        if last in names:
            store.fs.put_file(str(folder / last), f"{store.path.rstrip('/')}/{last}")
        store.fs.rm_file(note.path)


def remove_stored(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, from a store."""
    store: Any = path
    _remove_files(path, files_in(path))
    with suppress(OSError):  # some have real folders, which are there without files, too
        for folder in sorted(store.fs.find(store.path, withdirs=True), reverse=True):
            store.fs.rmdir(folder)
        store.fs.rmdir(store.path)


def is_unfinished(folder: Path) -> bool:
    """Whether a process was killed while it put this folder into a store, or is putting it."""
    return _note(folder).exists()


def clear_unfinished(folders: Iterable[Path]) -> None:
    """Clear away what a killed process left of ``put_folder``; folders are gone through twice."""
    left = set()
    for parent in {folder.parent for folder in folders}:  # each is listed once, however many
        with reaching(parent), suppress(FileNotFoundError, NotADirectoryError):
            left |= {path for path in parent.iterdir() if path.name.endswith(_UNFINISHED)}
    for folder in folders if left else ():
        if _note(folder) in left:
            remove_stored(folder)
            remove_stored(_note(folder))


def _note(folder: Path) -> Path:
    return folder.parent / f".{folder.name}{_UNFINISHED}"


def _pairs(store: Any, folder: Path, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return local and remote paths; as lists, in which fsspec takes no * or [ for a pattern."""
    root, names = store.path.rstrip("/"), list(names)
    here = [str(folder / name) for name in names]
    return here, [f"{root}/{name}" if name else root for name in names]


def _remove_files(folder: Path, names: Iterable[str]) -> None:
    store: Any = folder
    for path in _pairs(store, Path(), names)[1]:
        store.fs.rm_file(path)
