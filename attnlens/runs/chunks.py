"""What many answers need done to each, shared among workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.files import scratch_folder, write_file
from attnlens.progress import progress
from attnlens.runs.workers import Workers
from attnlens.stores import read_bytes
from attnlens.text import one_line

CHUNK = 200
"""Most answers in one job."""


class JobError(InputError):
    """A job of ``in_chunks`` has failed."""


def in_chunks(
    workers: Workers,
    function: Callable[[Sequence[Any]], list[Any]],
    items: Collection[Any],
    folder: Path,
    *,
    description: str,
) -> Iterator[Any]:
    """Give what a function makes of each item, as JSON reads it back, in the order of the items.

    Parameters
    ----------
    workers
        Who calls it; they need no model.
    function
        Makes a list of plain values of a list of items. It can be pickled, and so can the items.
    items
        What is worked on.
    folder
        What workers write goes into a ``scratch_folder`` beside this one, which all of them see.
    description
        For the progress bar.

    Raises
    ------
    JobError
        If a job failed. What is no ``InputError`` is named by its type.
    """
    count = -(-len(items) // CHUNK)
    with scratch_folder(folder) as scratch:
        paths = [scratch / f"{number}.json" for number in range(count)]
        rest = iter(items)
        jobs = (partial(_write, function, list(islice(rest, CHUNK)), path) for path in paths)
        with progress(total=len(items), description=description) as bar:
            for one in workers.run(jobs):
                for line in one.said.splitlines():
                    bar.write(one_line(line), file=sys.stderr)
                if one.problem:
                    raise JobError(one.problem)
                bar.update(min(CHUNK, len(items) - CHUNK * one.number))
        for path in paths:
            yield from json.loads(read_bytes(path))


def _write(
    function: Callable[[Sequence[Any]], list[Any]], chunk: Sequence[Any], path: Path, _: Any
) -> None:
    try:
        found = function(chunk)
    except InputError:
        raise
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    with write_file(path) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
