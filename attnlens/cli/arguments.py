"""What several subcommands do with their options."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.locking import only_process


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Parameters
    ----------
    name
        The option, without its dashes.
    value, least
        What was given, and the smallest number that works.

    Raises
    ------
    InputError
        If ``value`` is less than ``least``.
    """
    if value < least:
        raise InputError(f"--{name} {value}: give at least {least}")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with write_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def one_process(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Keep other processes out of ``--save_folder`` while the questions of a file are asked."""
    if options.data is None:
        return nullcontext()
    return only_process(Path(options.save_folder))


def exit_status(command: str, skipped: int, failed: int) -> int:
    """Return 1 where lines of a file were left out, and say how many; else 0.

    Parameters
    ----------
    command
        Name of the command.
    skipped, failed
        Lines that could not be used, and questions that failed.
    """
    if not skipped and not failed:
        return 0
    left_out = [
        f"{count} {what}{'' if count == 1 else 's'} {how}"
        for count, what, how in ((skipped, "line", "skipped"), (failed, "question", "failed"))
        if count
    ]
    print(
        f"attnlens {command}: not in the results: {', '.join(left_out)} (see above)",
        file=sys.stderr,
    )
    return 1
