"""How a forward pass carries its key-value cache.

transformers' modules take and return it as ``past_key_values`` up to version 5.23, and as ``cache``
from 5.24 on. No other file knows this.
"""

from __future__ import annotations

import inspect
from functools import cache as remembered
from typing import Any

from packaging.version import Version

from attnlens.errors import InputError

NAMES = ("cache", "past_key_values")
"""transformers' names for it, the newest first."""


@remembered
def _parameters(forward: Any) -> tuple[str, ...]:
    """Return the parameter names of a class's forward, in order."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _taken_by(module: Any) -> tuple[str, ...]:
    """Return a module's parameter names; torch's wrappers take anything, so look inside them."""
    while not set(NAMES).intersection(_parameters(type(module).forward)):
        children = module._modules
        inner = children.get("_orig_mod") or children.get("module")  # compiled, or distributed
        if inner is None:
            break
        module = inner
    return _parameters(type(module).forward)


def cache_parameter(module: Any) -> str:
    """Return the name of the parameter by which a module takes its cache.

    Raises
    ------
    InputError
        If it has none with a known name.
    """
    parameters = _taken_by(module)
    for name in NAMES:
        if name in parameters:
            return name
    from transformers import __version__

    raise InputError(
        f"{type(module).__name__} of transformers {__version__} takes its key-value cache under a "
        f"name that attnlens does not know (it knows {' and '.join(NAMES)}), so no pass could be "
        "distinguished from the first: install a version of transformers that attnlens allows"
    )


def argument(module: Any, args: tuple, options: dict[str, Any], name: str) -> Any:
    """Return what a module's forward was given under a name; None if nothing was."""
    return (dict(zip(_taken_by(module), args, strict=False)) | options).get(name)


def cache_of(module: Any, args: tuple, options: dict[str, Any]) -> Any:
    """Return the cache that a module's forward was called with; None if there is none.

    Raises
    ------
    InputError
        If the cache has an unknown name or two names at once, or is no ``transformers.Cache`` (the
        pages of continuous batching are none).
    """
    from transformers import Cache

    cache_parameter(module)
    given = [argument(module, args, options, name) for name in NAMES]
    caches = [cache for cache in given if cache is not None]
    if not caches:
        return None
    if len(caches) > 1 and caches[0] is not caches[1]:
        raise InputError(f"a pass was given two caches, as {' and as '.join(NAMES)}: give one")
    if not isinstance(caches[0], Cache):
        raise InputError(
            f"a pass carries its keys in a {type(caches[0]).__name__}, which cannot be read: "
            "call model.generate(**prompt.inputs), with a dynamic or a static cache or none"
        )
    return caches[0]


def with_cache(module: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that gives a module its cache."""
    return {cache_parameter(module): cache}


def returned_cache(output: Any) -> Any:
    """Return the cache in the output of a module or of ``generate``; None if there is none."""
    for name in NAMES:
        # another version's name may be an alias that warns: look only at the fields
        if name in output and output[name] is not None:
            return output[name]
    return None


def generates_with_cache(model: Any) -> bool:
    """Whether the layers of a model keep the cache that ``generate`` gives them.

    With gradient checkpointing in training mode they do not before transformers 5.24, and
    ``generate`` then answers from the last token alone.
    """
    from transformers import __version__

    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    return not (model.training and checkpointing and Version(__version__) < Version("5.24"))


def capacity(cache: Any) -> int | None:
    """How many tokens fit into a cache; None for one that grows, or for no cache."""
    sizes = [getattr(layer, "max_cache_len", None) for layer in getattr(cache, "layers", ())]
    found = [size for size in sizes if size is not None]
    return min(found) if found else None
