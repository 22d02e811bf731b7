"""What workers do: take jobs one after the other, and give back what came of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from attnlens.runs.provenance import model_provenance

Job = Callable[[Any], Any]
"""A function of the loaded model that can be pickled, so that any worker can do it."""


def no_model(_: None) -> None:
    """Load nothing: for jobs that need no model, which are given None."""


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes
    ----------
    number
        Its place among the jobs, from 0.
    result
        What it returned.
    problem
        Why it failed; empty where it did not.
    said
        What it printed in another process.
    """

    number: int
    result: Any = None
    problem: str = ""
    said: str = ""


class Workers(ABC):
    """One or more holders of one model."""

    @property
    @abstractmethod
    def model(self) -> Mapping[str, Any]:
        """``model_provenance`` of the model that all of them hold; empty where they need none."""

    @abstractmethod
    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do each job once, in any order; jobs are taken from the iterable when they begin."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:  # noqa: B027 (nothing to end here)
        """End what was started."""


class OneProcess(Workers):
    """The process itself.

    Parameters
    ----------
    vlm
        The loaded model; None where jobs need none.
    """

    def __init__(self, vlm: Any) -> None:
        self._vlm = vlm

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """``model_provenance`` of the model; empty where there is none."""
        return {} if self._vlm is None else model_provenance(self._vlm)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do each job in its turn."""
        for number, job in enumerate(jobs):
            try:
                done = Done(number, job(self._vlm))
            except Exception as error:  # the other jobs can still be done
                done = Done(number, problem=str(error) or type(error).__name__)
            yield done
