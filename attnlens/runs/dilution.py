"""The runs behind ``attnlens dilution --data``, each kept when it is done.

For each question: a recorded answer (Theorem 3.1) and, where they are asked for, twins with
inserted visual tokens (Theorem 3.2) and sampled answers with and without the image (mutual
information).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnlens.errors import InputError
from attnlens.experiments.dependence import sampled_dependence, save_dependence
from attnlens.experiments.force import insertions, twins
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import provenance
from attnlens.runs.recordings import ANSWERS, TWINS, read_trace, record_each
from attnlens.runs.settings import AskSettings, RecordingSettings
from attnlens.runs.workers import Workers
from attnlens.stores import local_copy

if TYPE_CHECKING:
    from attnlens.models.load import VLM

OTHERS = 8
"""How many other images an answer is measured against, at most."""


@dataclass(frozen=True)
class DilutionRuns:
    """What was run, by question.

    Attributes
    ----------
    recorded
        Entries of the recorded answers.
    twins
        Entries of the forced twins, a ``NAME.zarr`` for each of ``insertions(1)``; empty if they
        were not asked for.
    answers
        Entries of what ``dependence`` gives for sampled answers: ``0.zarr``, ``1.zarr``, ...
    samples
        How many sampled answers were asked for; an entry may hold more.
    failed
        How many questions lack some part of what was asked for.
    """

    recorded: dict[Question, Entry]
    twins: dict[Question, Entry]
    answers: dict[Question, Entry]
    samples: int
    failed: int


def run_questions(
    workers: Workers,
    questions: list[Question],
    settings: RecordingSettings,
    root: Path,
    *,
    insertion: bool,
    samples: int,
) -> DilutionRuns:
    """Run what is not there yet.

    Parameters
    ----------
    workers, questions, settings
        Who asks, the questions of a file, and how they are asked.
    root
        Folder of all runs.
    insertion
        Whether twins with inserted visual tokens are run: in the middle of every answer.
    samples
        How many answers to each question are sampled for the mutual information; 0 for none.

    Raises
    ------
    InputError
        If no question could be run.
    """
    runs = record_each(workers, questions, settings, root, command="dilution")
    recorded = {run.question: run.entry for run in runs}
    if not recorded:
        raise InputError("no question could be run: see the lines above")
    twinned = _twins(workers, recorded, settings, root) if insertion else {}
    answered = _answers(workers, questions, settings, samples, root) if samples else {}
    parts = [recorded, *([twinned] if insertion else []), *([answered] if samples else [])]
    failed = sum(any(question not in part for part in parts) for question in questions)
    return DilutionRuns(recorded, twinned, answered, samples, failed)


def _twins(
    workers: Workers, recorded: dict[Question, Entry], settings: RecordingSettings, root: Path
) -> dict[Question, Entry]:
    runs = [
        Run(
            question,
            settings,
            Entry(
                root / f"{settings.mode}{TWINS}" / question.folder,
                {
                    "question": question.text,
                    "recorded_answer": entry.identity,
                    "insertions": list(insertions(1)),
                },
            ),
            partial(_twin, question, entry, settings),
        )
        for question, entry in recorded.items()
    ]
    there = make_each(runs, workers, command="dilution (insertions)")
    return {run.question: run.entry for run in there}


def _twin(
    question: Question, recorded: Entry, settings: RecordingSettings, vlm: VLM, folder: Path
) -> None:
    prompt = settings.prompt(vlm, question)
    trace = read_trace(recorded)
    for name, twin in twins(vlm, prompt, trace, layers=settings.layers).items():
        twin.save(folder / f"{name}.zarr")


def _answers(
    workers: Workers,
    questions: list[Question],
    settings: RecordingSettings,
    samples: int,
    root: Path,
) -> dict[Question, Entry]:
    model = workers.model
    # they are sampled at temperature 1, and nothing of them is recorded
    asked = AskSettings(**{f.name: getattr(settings, f.name) for f in fields(AskSettings)})
    others = {question: _others(question, questions) for question in questions}
    if not any(others.values()):
        print(
            "attnlens dilution: all questions have one image, so answers are measured against no "
            "image alone: their average over other images, and a lower bound, need several",
            file=sys.stderr,
        )
    entries = {
        question: Entry(
            root / f"{settings.mode}{ANSWERS}" / question.folder,
            {
                **provenance(question, asked, model),
                "seed": settings.seed,
                "others": [other.image_sha256 for other in others[question]],
            },
            needs=tuple(f"{i}.zarr" for i in range(samples)),
        )
        for question in questions
    }

    runs = []
    for question, entry in entries.items():
        pictures = [other.image for other in others[question]]
        make = _Sampling(question, entry, settings, samples, pictures)
        runs.append(Run(question, asked, entry, make))
    there = make_each(runs, workers, command="dilution (sampled answers)")
    return {run.question: run.entry for run in there}


@dataclass(frozen=True)
class _Sampling:
    """Sample the answers to a question that are not there yet."""

    question: Question
    entry: Entry
    settings: RecordingSettings
    samples: int
    others: list[str]

    def __call__(self, vlm: VLM, folder: Path) -> None:
        entry, known = self.entry, 0
        if entry.has_key():  # the i-th answer is the same however many follow
            while (before := entry.folder / f"{known}.zarr").exists():
                with local_copy(before) as local:
                    shutil.copytree(local, folder / before.name)
                known += 1
        found = sampled_dependence(
            vlm,
            self.settings.prompt(vlm, self.question),
            self.samples - known,
            self.others,
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed + known,
        )
        for i, one in enumerate(found, known):
            save_dependence(one, folder / f"{i}.zarr")


def _others(question: Question, questions: list[Question]) -> list[Question]:
    """Return questions with other images, in order from the question's own on."""
    place = questions.index(question)
    turned = [*questions[place + 1 :], *questions[:place]]
    by_image = {other.image_sha256: other for other in turned}
    by_image.pop(question.image_sha256, None)
    return list(by_image.values())[:OTHERS]
