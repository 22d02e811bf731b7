"""The error that tells users what to give instead."""

from __future__ import annotations


class InputError(ValueError):
    """An input cannot be used.

    The message is one sentence that repeats the input and says what would work. The command line
    prints it as one line and exits with status 2.
    """
