"""The definitions of visual attention, by name."""

from __future__ import annotations

from attnlens.errors import InputError
from attnlens.measures.definitions import (
    look_back,
    lookback_ratio,
    mass,
    mean_weight,
    no_sink,
    reflection_v,
)
from attnlens.measures.definitions.base import Definition

_MODULES = (mass, look_back, mean_weight, lookback_ratio, reflection_v, no_sink)

DEFINITIONS: dict[str, Definition] = {
    module.DEFINITION.name: module.DEFINITION for module in _MODULES
}
"""Every definition by its name, in the order in which they are documented."""


def definitions() -> dict[str, str]:
    """List the definitions that measures accept.

    Returns
    -------
    dict of str to str
        Name of each definition and one line that describes it.
    """
    return {name: definition.description for name, definition in DEFINITIONS.items()}


def get_definition(name: str) -> Definition:
    """Return a definition by name.

    Parameters
    ----------
    name : str
        One of the keys of ``definitions``.

    Returns
    -------
    Definition

    Raises
    ------
    InputError
        If there is no definition of that name; the message names those there are.
    """
    if not isinstance(name, str) or name not in DEFINITIONS:
        raise InputError(f"Unknown definition {name!r}; known: {', '.join(DEFINITIONS)}.")
    return DEFINITIONS[name]


__all__ = ["DEFINITIONS", "Definition", "definitions", "get_definition"]
