"""What both lenses need: an optional library, and a model that it may change."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from attnlens.errors import InputError


def library(name: str) -> Any:
    """Import an optional library.

    Raises
    ------
    InputError
        If it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"this needs {name}, which cannot be imported ({error}): "
            "run pip install 'attnlens[lenses]'"
        ) from error


def copy_structure(model: Any) -> Any:
    """Copy a model's modules and configurations, but not its weights, which both then share.

    A library may put wrappers, hooks or another attention implementation into the copy, and the
    model stays as it is.
    """
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})
