"""Workers that are actors of a Ray cluster.

They are plain actors, not those of Ray Data's ``map_batches``: that repeats a batch for as often as
its actor dies, and sends an actor batches ahead, so that jobs which had not begun die with it. Here
each actor has one job, and each death counts for that job alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from attnlens.errors import InputError
from attnlens.runs.workers.base import Job, Workers
from attnlens.runs.workers.pool import Holder, Pool, Reply


@dataclass(eq=False)
class _Actor:
    number: int
    handle: Any
    reply: Any
    """What it will reply to what it was last asked."""


class RayActors(Pool[_Actor]):
    """Actors with a GPU each, or with a CPU each where the cluster has no GPU or none is needed.

    All machines see the files at the same paths, and have attnlens in the same version.

    Parameters
    ----------
    load, settings, count, address
        As in ``start_workers``.

    Raises
    ------
    InputError
        If Ray is not installed.
    """

    def __init__(
        self, load: Callable[[Any], Any], settings: Any, count: int | None, address: str
    ) -> None:
        check_ray(address)
        super().__init__(count or 0)
        self._work = load, settings
        self._address = address
        self._needs: dict[str, int] = {}

    def __enter__(self) -> Workers:
        import ray

        try:
            ray.init(self._address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--ray {self._address!r}: no cluster answers ({error}): give auto, HOST:PORT, "
                "ray://HOST:PORT, or local to start one here"
            ) from error
        room = ray.cluster_resources()
        _, settings = self._work
        gpus = 0 if settings is None else int(room.get("GPU", 0))
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        self._count = self._count or gpus or max(1, int(room.get("CPU", 1)))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        import ray

        super().__exit__(*error)
        ray.shutdown()

    def _start(self, number: int) -> _Actor:
        import ray

        handle = ray.remote(**self._needs)(_Placed).remote(*self._work, os.getcwd())
        return _Actor(number, handle, handle.start.remote())

    def _send(self, worker: _Actor, job: Job) -> None:
        worker.reply = worker.handle.do.remote(job)

    def _wait(self, workers: list[_Actor]) -> tuple[_Actor, Reply | None]:
        import ray

        of = {worker.reply: worker for worker in workers}
        (ready,), _ = ray.wait(list(of))
        try:
            return of[ready], ray.get(ready)
        except ray.exceptions.RayTaskError as error:  # a machine with another attnlens, or none
            return of[ready], Reply(problem=str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError:  # the actor has died, or was ended for its memory
            return of[ready], None

    def _end(self, worker: _Actor) -> None:
        import ray

        ray.kill(worker.handle)

    def _number(self, worker: _Actor) -> int:
        return worker.number


class _Placed(Holder):
    """A holder in the folder of the command, so that relative paths mean the same."""

    def __init__(self, load: Callable[[Any], Any], settings: Any, folder: str) -> None:
        super().__init__(load, settings)
        self._folder = folder

    def _start(self) -> tuple[dict[str, Any], str, int]:
        os.chdir(self._folder)
        return super()._start()


def check_ray(address: str) -> None:
    """Refuse an address where Ray is not installed.

    Raises
    ------
    InputError
        If it is not.
    """
    if find_spec("ray") is None:
        raise InputError(f"--ray {address!r} needs Ray: pip install attnlens[cluster]")
