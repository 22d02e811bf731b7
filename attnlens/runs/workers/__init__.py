"""Who makes what is made of each question: this process, others beside it, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from attnlens.runs.workers.base import Done, Job, OneProcess, Workers, no_model

__all__ = ["Done", "Job", "OneProcess", "Workers", "no_model", "start_workers"]


def start_workers(
    load: Callable[[Any], Any], settings: Any, *, count: int | None = None, ray: str | None = None
) -> AbstractContextManager[Workers]:
    """Load the model wherever it will be used; a context manager, at whose end workers end.

    Parameters
    ----------
    load
        Loads the model from the settings; it can be pickled. ``no_model`` where none is needed.
    settings
        Those of the command; with the device ``auto``, workers share the GPUs. None where no model
        is needed, and no GPU.
    count
        How many workers there are, each with the model; on a cluster, as many as it has room for
        when not given, else one.
    ray
        Address of a Ray cluster, as ``ray.init`` takes it; ``local`` starts one.
    """
    if ray is not None:
        from attnlens.runs.workers.cluster import RayActors

        return RayActors(load, settings, count, ray)
    if count is None or count == 1:
        return OneProcess(load(settings))
    from attnlens.runs.workers.processes import Processes

    return Processes(load, settings, count)
