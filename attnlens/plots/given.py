"""What a plot was given, checked before it draws."""

from __future__ import annotations

from typing import Any

from attnlens.errors import InputError


def check_result(given: Any, kind: str, maker: str) -> None:
    """Refuse what is no result of a measure.

    Parameters
    ----------
    given
        What a plot was called with.
    kind
        Name of the class that it draws: by name, so that nothing else need be imported.
    maker
        What returns one, for the message.

    Raises
    ------
    InputError
        If it is something else.
    """
    if all(base.__name__ != kind for base in type(given).__mro__):
        raise InputError(f"{type(given).__name__} was given: give what {maker} returns")
