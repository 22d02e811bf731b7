"""The error that tells a user what to give instead."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given cannot be used.

    The message is one sentence that repeats what was given and says what would work. The command
    line prints it as one line and exits with status 2.
    """
