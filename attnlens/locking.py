"""One process at a time to a folder of results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnlens.errors import InputError

NAME = ".attnlens-lock"
"""Name of the file that is locked. It goes with its process, or with the next one after a kill."""

MOST_TRIES = 100
"""How often a folder is made again that others take away."""


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes of attnlens out of a folder for the time of a block.

    The system gives a lock back when its process ends, however it ends. Where there are no such
    locks (Windows, some network folders) nothing is kept out.

    Parameters
    ----------
    folder
        Where results go; made where it is missing, and taken away again if nothing goes there.

    Raises
    ------
    InputError
        If another process is at work there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    made, tries = False, 0
    path = folder / NAME
    while True:
        made = made or not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("w")
        except FileNotFoundError:  # another process has just taken its empty folder away
            tries += 1
            if tries == MOST_TRIES:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(
                f"another attnlens is at work in {str(folder)!r}: wait for it to end, or give "
                "another --save_folder"
            ) from error
        except OSError:  # no locks in this folder
            break
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:
            pass
        file.close()  # removed by its owner between our opening and our locking
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):  # it holds results
                folder.rmdir()
