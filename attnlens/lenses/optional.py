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
    except (ImportError, RuntimeError) as error:  # a broken torchvision raises the latter
        raise InputError(
            f"this needs {name}, which cannot be imported ({error}): "
            "run pip install 'attnlens[lenses]'"
        ) from error


def copy_structure(model: Any) -> Any:
    """Copy a model's modules and configurations, but not the numbers of its weights.

    Both share these until one of them moves or converts its own (``.to``). A library may put
    wrappers, hooks or another attention implementation into the copy, and the model stays as it is.
    """
    from torch import nn

    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
    for buffer in model.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, shared)
