"""The runs behind ``attnlens recover``: of one question, or of every line of a file."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnlens.answers import as_number, is_changed, judge
from attnlens.errors import InputError
from attnlens.experiments.comparison import CompareSettings, compare_runs, to_dataset, warm_up
from attnlens.experiments.recover import named_interventions, recover
from attnlens.experiments.recovery import Recovery
from attnlens.interventions.session import intervene
from attnlens.models.images import open_image
from attnlens.progress import progress
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import provenance
from attnlens.runs.recordings import TRACE
from attnlens.runs.workers import Workers
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.runs.settings import RecoverySettings

RECOVERY = "recovery.zarr"
"""Name of a question's recovery in an entry."""


def recover_one(vlm: VLM, question: Question, settings: RecoverySettings) -> Recovery:
    """Run a question of the command line.

    Raises
    ------
    InputError
        If an intervention does not fit the prompt, before anything is generated.
    """
    return recover(
        vlm,
        settings.prompt(vlm, question),
        settings.parsed(),
        settings.max_new_tokens,
        expected=question.answer,
        detail=settings.detail,
    )


def load_warm(settings: RecoverySettings) -> VLM:
    """Load the model and generate two tokens, since the time of each run is kept."""
    from PIL import Image

    vlm = settings.load()
    warm_up(vlm, vlm.prompt(Image.new("RGB", (224, 224)), "What is there?", settings.mode))
    return vlm


def recover_each(
    workers: Workers, questions: list[Question], settings: RecoverySettings, root: Path
) -> tuple[Recovery, list[Question]]:
    """Run the questions of a file that have not been run yet, each kept when it is done.

    Parameters
    ----------
    workers, questions, settings
        Who asks, what is asked, and how.
    root
        Each question's part of the result goes into ``MODE/LINE_IMAGE/`` there, with
        ``trace.zarr``, the untouched run.

    Returns
    -------
    tuple
        The recovery of all questions together, and those that could be run.

    Raises
    ------
    InputError
        If no question can be run.
    """
    fitting = _fitting(workers, questions, settings)
    shown = {name: open_image(name)[1].sha256 for name in settings.pictures()}
    model = workers.model
    runs = [
        Run(
            question,
            settings,
            Entry(
                root / settings.mode / question.folder,
                {**provenance(question, settings, model), "pictures": shown},
            ),
            partial(_recover, question, settings),
        )
        for question in fitting
    ]
    there = make_each(runs, workers, command="recover")
    if not there:
        raise InputError("no question could be run: see the lines above")
    parts = []
    for run in there:
        with run.entry.reading() as folder:
            parts.append(Recovery.load(folder / RECOVERY))
        _judge(parts[-1], run.question.answer)
    return Recovery.join(parts), [run.question for run in there]


def _recover(question: Question, settings: RecoverySettings, vlm: VLM, folder: Path) -> None:
    rows, trace = compare_runs(
        vlm,
        settings.prompt(vlm, question),
        named_interventions(settings.parsed()),
        None,  # answers are judged when they are read
        CompareSettings(settings.max_new_tokens, settings.detail),
    )
    Recovery(to_dataset([rows], vlm)).save(folder / RECOVERY)
    trace.save(folder / TRACE)


def _judge(part: Recovery, truth: str | None) -> None:
    """Judge answers by today's rule and truth, whenever the question was run."""
    for i, (before, *others) in enumerate(part.data["answer"].values.tolist()):
        answers = (before, *others)
        part.data["answer_changed"].values[i] = [as_number(is_changed(a, before)) for a in answers]
        part.data["right"].values[i] = [
            as_number(None if truth is None else judge(a, truth).right) for a in answers
        ]


def _fitting(
    workers: Workers, questions: list[Question], settings: RecoverySettings
) -> list[Question]:
    """Leave out lines with a prompt that an intervention does not fit; each is reported."""
    checks = workers.run(partial(_check, question, settings) for question in questions)
    problems = {
        one.number: one.problem
        for one in progress(checks, total=len(questions), description="prompts")
    }
    good, problem = [], ""
    for number, question in enumerate(questions):
        if problems[number]:
            problem = f"line {question.line}: {problems[number]}"
            print(one_line(f"attnlens: skipped {problem}"), file=sys.stderr)
        else:
            good.append(question)
    if not good:
        raise InputError(f"no line can be used; {problem}")
    return good


def _check(question: Question, settings: RecoverySettings, vlm: VLM) -> None:
    prompt = settings.prompt(vlm, question)
    for intervention in named_interventions(settings.parsed()).values():
        intervene(vlm, prompt, intervention)  # checks the prompt; it is never entered
