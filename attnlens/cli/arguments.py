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
from attnlens.models.modes import MODE_NAMES, MODES_HELP, check_template


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


def add_prompt_options(group: Any, mode: str) -> None:
    """Add the options that say in what words a question is asked.

    Parameters
    ----------
    group
        A parser, or a group of options.
    mode
        What ``--mode`` is when it is not given.
    """
    group.add_argument(
        "--mode",
        default=mode,
        choices=MODE_NAMES,
        metavar="MODE",
        help=f"format of the answer: {MODES_HELP} ({mode})",
    )
    group.add_argument(
        "--template",
        metavar="FILE",
        help="a text file with your own words in place of the mode's, with {question} where the "
        "question goes; one line end at its end is left out. --mode then names the results and "
        "gives the system prompt",
    )
    group.add_argument(
        "--system",
        metavar="TEXT",
        help="your own system prompt, in place of the mode's (You are a helpful assistant.)",
    )


def add_pixel_options(group: Any) -> None:
    """Add the options that limit the size of pictures."""
    for name, which in (("min", "smallest"), ("max", "largest")):
        group.add_argument(
            f"--{name}_pixels",
            type=int,
            metavar="N",
            help=f"{which} area of a picture after resizing, in pixels (the checkpoint's own; "
            "Look-Back's evaluation: 262144 to 1000000)",
        )


def asking_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what model is asked in what words, as the settings of a run name it.

    Raises
    ------
    InputError
        If the template's file cannot be read.
    """
    return {
        "mode": options.mode,
        "system": options.system,
        "template": None if options.template is None else _read_template(options.template),
        "min_pixels": options.min_pixels,
        "max_pixels": options.max_pixels,
        "model": options.model_path,
        "device": options.device,
        "dtype": options.dtype,
        "max_new_tokens": options.max_new_tokens,
        "save_folder": options.save_folder,
    }


def _read_template(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"--template {path!r} cannot be read ({reason}): give a text file with {{question}} "
            "in it"
        ) from error
    text = text.removesuffix("\n")  # editors end a file so
    try:
        check_template(text)
    except InputError as error:
        raise InputError(f"--template {path!r}: {error}") from error
    return text


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
