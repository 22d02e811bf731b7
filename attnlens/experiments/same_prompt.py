"""Whether a trace answers a prompt, as far as the trace notes its own."""

from __future__ import annotations

from typing import Any

from attnlens.errors import InputError
from attnlens.models.prompt import Prompt
from attnlens.recording.trace import Trace


def other_parts(prompt: Prompt, trace: Trace) -> list[str]:
    """Say what of a prompt a trace notes otherwise.

    Parameters
    ----------
    prompt
        What was asked.
    trace
        A recorded generation.

    Returns
    -------
    list of str
        ``prompt`` (its text) and ``images``, where they differ. Images are the same by their grid
        of visual tokens and the hash of their files; one that was opened by the caller is compared
        with one from a file by size alone.

    Raises
    ------
    InputError
        If it is given no prompt.
    """
    check_prompt(prompt)
    found = []
    text = trace.attrs.get("prompt")
    if text and text != prompt.text:
        found.append("prompt")
    noted = trace.attrs.get("images")
    if noted:
        given = [image.as_dict() for image in prompt.images]
        alike = len(noted) == len(given) and all(map(_same_image, noted, given))
        if not alike:
            found.append("images")
    return found


def check_prompt(prompt: Any) -> None:
    """Refuse what is no prompt of ``vlm.prompt``.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(prompt, Prompt):
        raise InputError(f"{type(prompt).__name__} was given as prompt: give one of vlm.prompt")


def _same_image(noted: dict[str, Any], given: dict[str, Any]) -> bool:
    if any(noted.get(side) not in (None, given[side]) for side in ("rows", "columns")):
        return False
    of_files = [bool(image.get("path")) for image in (noted, given)]
    if of_files[0] == of_files[1]:
        return noted.get("sha256") == given.get("sha256")
    return all(noted.get(side) == given.get(side) for side in ("width", "height"))
