"""What several subcommands do with their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.files import write_file


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
