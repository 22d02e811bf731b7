"""Workers that each load the model once and hold it: which of them does what.

A worker may be killed at any time, by a user or for memory. Its job is then given to another one,
and another worker is started in its place; a job whose worker was killed twice has failed.
"""

from __future__ import annotations

import io
import os
import sys
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from attnlens._version import __version__
from attnlens.errors import InputError
from attnlens.runs.provenance import differences, model_provenance
from attnlens.runs.workers.base import Done, Job, Workers
from attnlens.text import one_line

MOST_TRIES = 2
"""How many workers may be killed while they do one job."""

_Worker = TypeVar("_Worker")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reply:
    """What a worker sends back: the parts of ``Done`` that it knows."""

    result: Any = None
    problem: str = ""
    said: str = ""


def reply_of(function: Callable[[], _Result]) -> Reply:
    """Call a function; keep what it returns or raises, and what it prints."""
    said = io.StringIO()  # not a terminal: progress bars stay away
    with redirect_stdout(said), redirect_stderr(said):
        try:
            return Reply(function(), "", said.getvalue())
        except Exception as error:  # the other jobs can still be done
            return Reply(None, str(error) or type(error).__name__, said.getvalue())


class Holder:
    """What holds the model in a worker.

    Parameters
    ----------
    load, settings
        As in ``start_workers``.
    """

    def __init__(self, load: Callable[[Any], Any], settings: Any) -> None:
        self._load = load
        self._settings = settings
        self._vlm: Any = None

    def start(self) -> Reply:
        """Load the model; the result is its provenance, our version and the id of the process."""
        return reply_of(self._start)

    def do(self, job: Job) -> Reply:
        """Do a job."""
        return reply_of(lambda: job(self._vlm))

    def _start(self) -> tuple[dict[str, Any], str, int]:
        self._vlm = self._load(self._settings)
        model = {} if self._vlm is None else model_provenance(self._vlm)
        return model, __version__, os.getpid()


class Pool(Workers, Generic[_Worker]):
    """Several workers, each with one job at a time.

    Parameters
    ----------
    count
        How many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._model: Mapping[str, Any] | None = None
        self._pids: dict[_Worker, int] = {}
        self._idle: list[_Worker] = []
        self._loading: list[_Worker] = []
        self._busy: dict[_Worker, tuple[int, Job]] = {}

    @abstractmethod
    def _start(self, number: int) -> _Worker:
        """Start a worker, which loads the model; ``number`` is its place among ``count``."""

    @abstractmethod
    def _send(self, worker: _Worker, job: Job) -> None:
        """Give a worker a job."""

    @abstractmethod
    def _wait(self, workers: list[_Worker]) -> tuple[_Worker, Reply | None]:
        """Wait for one of these to reply; None where it has died."""

    @abstractmethod
    def _end(self, worker: _Worker) -> None:
        """End a worker at once, whatever it does."""

    @abstractmethod
    def _number(self, worker: _Worker) -> int:
        """Return the number that a worker was started with."""

    def __enter__(self) -> Workers:
        try:
            for number in range(self._count):
                self._loading.append(self._start(number))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for worker in (*self._idle, *self._loading, *self._busy):
            self._end(worker)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have loaded the model."""
        return list(self._pids.values())

    @property
    def model(self) -> Mapping[str, Any]:
        """What the first of them to be ready holds; waits for it."""
        while self._model is None:
            self._join(*self._wait(self._loading))
        return self._model

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Hand the jobs out, and give what came of each as soon as it is done."""
        new, again = enumerate(jobs), deque[tuple[int, Job]]()
        deaths: Counter[int] = Counter()
        task = next(new, None)
        while task or self._busy:
            while task and self._idle:
                worker = self._idle.pop()
                self._busy[worker] = task
                self._send(worker, task[1])
                task = again.popleft() if again else next(new, None)
            worker, reply = self._wait([*self._busy, *(self._loading if task else ())])
            if worker not in self._busy:
                self._join(worker, reply)
                continue
            number, job = self._busy.pop(worker)
            if reply is not None:
                self._idle.append(worker)
                yield Done(number, reply.result, reply.problem, reply.said)
                continue
            pid = self._pids.pop(worker)
            self._end(worker)
            self._loading.append(self._start(self._number(worker)))
            deaths[number] += 1
            problem = f"its worker, process {pid}, was killed"
            if deaths[number] < MOST_TRIES:
                self._say(f"{problem}; another one takes it over")
                again.append((number, job))
                task = task or again.popleft()
            else:
                yield Done(number, problem=f"{problem}, and so was the one before")

    def _join(self, worker: _Worker, reply: Reply | None) -> None:
        """Take in a worker that has loaded the model, or has failed to."""
        self._loading.remove(worker)
        if reply is None:
            self._end(worker)
            if not (self._loading or self._idle or self._busy):
                raise InputError(
                    f"all {self._count} workers were killed while they loaded the model: give "
                    "fewer with --workers, or more memory"
                )
            self._say("a worker was killed while it loaded the model; the others go on")
            return
        if reply.problem:
            self._end(worker)
            problem = f"a worker cannot load the model: {reply.problem}"
            if not (self._idle or self._busy):
                raise InputError(problem)
            self._say(f"{problem}; the others go on")
            return
        model, version, self._pids[worker] = reply.result
        if version != __version__:
            raise InputError(
                f"a worker has attnlens {version}, and the command {__version__}: install the same"
            )
        self._idle.append(worker)
        if self._model is None:
            self._model = model
        elif model != self._model:
            others = ", ".join(differences(self._model, model))
            raise InputError(f"workers hold different models, or run them differently: {others}")

    @staticmethod
    def _say(text: str) -> None:
        from tqdm import tqdm

        tqdm.write(one_line(f"attnlens: {text}"), file=sys.stderr)  # above a progress bar
