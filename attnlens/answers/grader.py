"""A process of its own that compares expressions: it can be ended when it takes too long.

The time limits of math-verify are alarm signals, which work in a main thread alone, and SymPy may
take memory before it takes time. A process has a main thread, can be given a limit of memory, and
can be killed from any thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from attnlens.errors import InputError

SECONDS = 10
"""Longest time for one comparison."""
INSTALL = "pip install attnlens[eval]"
MODULES = {"equal": ("math_verify",), "look-back": ("math_verify", "mathruler", "pylatexenc")}
"""What each kind of comparison needs; all are in the extra ``eval``."""


def is_there(kind: str) -> bool:
    """Whether what a kind of comparison needs is installed."""
    return all(find_spec(name) is not None for name in MODULES[kind])


def ask(kind: str, answer: str, truth: str, seconds: float = SECONDS) -> str | None:
    """Compare two texts in the other process.

    Parameters
    ----------
    kind
        ``"equal"``: two expressions, by math-verify; ``"look-back"``: a response and a truth, by
        the rule of Look-Back's ``cal_score.py``.
    answer, truth
        What is compared.
    seconds
        How long it may take.

    Returns
    -------
    str or None
        The step by which they are the same, empty where they are not; None where time or memory
        did not suffice, or the library failed.

    Raises
    ------
    InputError
        If what it needs is not installed or cannot be imported.
    """
    if not is_there(kind):
        raise InputError(f"comparing expressions needs math-verify: {INSTALL}")
    return _ask(kind, answer, truth, seconds)


@lru_cache(maxsize=4096)
def _ask(kind: str, answer: str, truth: str, seconds: float) -> str | None:
    worker = _workers.setdefault(os.getpid(), _Worker())  # a fork must not share its parent's pipe
    with worker.lock:
        return worker.ask({"kind": kind, "answer": answer, "truth": truth}, seconds)


class _Worker:
    """The process, started when it is first asked and again after it was ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, str], seconds: float) -> str | None:
        if self.process is not None and self.process.poll() is not None:
            self._end(self.process)  # something else has ended it
        process = self.process or self._start()
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._exchange(process, json.dumps(question))
        except BaseException:  # Ctrl-C: the reply would be taken for that to the next question
            self._end(process)
            raise
        finally:
            timer.cancel()
        if not line:
            self._end(process)
            return None
        return str(json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        process = subprocess.Popen(
            [sys.executable, "-m", "attnlens.answers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings that repeat the text
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        if not self._exchange(process, None):
            self._end(process)
            raise InputError(f"math-verify is installed but cannot be imported: try {INSTALL}")
        self.process = process
        return process

    @staticmethod
    def _exchange(process: subprocess.Popen[str], line: str | None) -> str:
        """Send a line, if any, and wait for the next one; empty where the process has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            return process.stdout.readline()
        return ""

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        with suppress(BrokenPipeError):
            process.communicate()
        self.process = None


_workers: dict[int, Any] = {}
