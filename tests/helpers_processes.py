"""Functions in processes of their own, which can be killed in the middle of their work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import TextIO

IMPORTED = [
    "attnlens.cli.main",
    "attnlens.experiments.dependence",
    "attnlens.experiments.force",
    "attnlens.measures",
    "attnlens.models.load",
    "attnlens.plots",
    "attnlens.reports.dilution",
    "attnlens.reports.recovery",
    "attnlens.reports.trend",
    "attnlens.runs.dilution",
    "attnlens.runs.recordings",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
]
"""What the commands import, which takes a new interpreter seconds."""


def context() -> BaseContext:
    """Fork from a server that has only imported; a fork of a test's own threads would hang.

    The server keeps the environment that it is started in: call this before one is changed.
    """
    if sys.platform != "linux":  # elsewhere not all libraries survive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()
    return context


def _printing(writer: Connection, function: Callable, *arguments) -> None:
    """Call a function, with what it prints sent into a pipe line by line, and errors nowhere."""
    os.dup2(writer.fileno(), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    function(*arguments)


@contextmanager
def killed_process(function: Callable, *arguments) -> Iterator[TextIO]:
    """Run a function in a process, give what it prints, and kill it when the block ends.

    It must still be at work then.
    """
    here = context()
    reader, writer = here.Pipe(duplex=False)
    process = here.Process(target=_printing, args=(writer, function, *arguments))
    process.start()
    writer.close()  # so that what is read ends with the process
    try:
        with open(reader.fileno(), encoding="utf-8", closefd=False) as printed:
            yield printed
    finally:
        process.kill()
        process.join()
        reader.close()
    assert process.exitcode == -signal.SIGKILL


def run_in_process(function: Callable, *arguments) -> None:
    """Run a function to its end in a process that has no threads, so that it can fork."""
    process = context().Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


class StartedProcess:
    """A function in a process of its own, with what a kernel needs of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, function: Callable, *arguments) -> None:
        self._process = context().Process(target=function, args=arguments)
        self._process.start()
        self.pid = self._process.pid
        self.terminate = self._process.terminate
        self.kill = self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
