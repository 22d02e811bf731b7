"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from attnlens.runs.workers.base import Job
from attnlens.runs.workers.pool import Holder, Pool, Reply


@dataclass(frozen=True, eq=False)
class _Process:
    number: int
    process: Any
    connection: Connection


SECONDS = 10
"""How long an idle worker may take to end by itself."""


class Processes(Pool[_Process]):
    """New processes, which end with this one.

    Parameters
    ----------
    load, settings, count
        As in ``start_workers``.
    """

    def __init__(self, load: Callable[[Any], Any], settings: Any, count: int) -> None:
        super().__init__(count)
        self._work = load, settings

    def __exit__(self, *error: object) -> None:
        for worker in self._idle:
            worker.connection.close()
        for worker in self._idle:
            worker.process.join(SECONDS)
        super().__exit__(*error)

    def _start(self, number: int) -> _Process:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        ours, theirs = context.Pipe()
        arguments = (theirs, *self._work, number, self._count)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that what is read ends with the process
        return _Process(number, process, ours)

    def _send(self, worker: _Process, job: Job) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: the next wait says so
            worker.connection.send(job)

    def _wait(self, workers: list[_Process]) -> tuple[_Process, Reply | None]:
        of = {worker.connection: worker for worker in workers}
        ready: Any = wait(list(of))[0]
        try:
            return of[ready], ready.recv()
        except (EOFError, OSError):
            return of[ready], None

    def _end(self, worker: _Process) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def _number(self, worker: _Process) -> int:
        return worker.number


def _serve(
    connection: Connection, load: Callable[[Any], Any], settings: Any, number: int, count: int
) -> None:
    """Load the model and do what is sent, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    holder = Holder(load, None if settings is None else _share(settings, number, count))
    connection.send(holder.start())
    with suppress(EOFError):
        while True:
            connection.send(holder.do(connection.recv()))


def _share(settings: Any, number: int, count: int) -> Any:
    """Take a share of the cores, and of the GPUs with the device ``auto``."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if settings.device == "auto" and torch.cuda.is_available():
        return replace(settings, device=f"cuda:{number % torch.cuda.device_count()}")
    return settings


def _end_with_parent() -> None:
    """End this process with the one that started it, even in the middle of a job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
