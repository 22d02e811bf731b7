"""The runs behind ``attnlens recover``: of one question, or of every line of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
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
from attnlens.runs.cache import Entry, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import model_provenance, provenance
from attnlens.runs.recordings import TRACE
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.interventions.base import Intervention
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


def recover_each(
    vlm: VLM, questions: list[Question], settings: RecoverySettings, root: Path
) -> tuple[Recovery, list[Question]]:
    """Run the questions of a file that have not been run yet, each kept when it is done.

    Parameters
    ----------
    vlm, questions, settings
        The model, what is asked, and how.
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
    interventions = named_interventions(settings.parsed())
    fitting = _fitting(vlm, questions, settings, interventions.values())
    warm_up(vlm, settings.prompt(vlm, fitting[0]))
    shown = {name: open_image(name)[1].sha256 for name in settings.pictures()}
    model = model_provenance(vlm)
    entries = {
        question: Entry(
            root / settings.mode / question.folder,
            {**provenance(question, settings, model), "pictures": shown},
        )
        for question in fitting
    }

    def make(question: Question, folder: Path) -> None:
        rows, trace = compare_runs(
            vlm,
            settings.prompt(vlm, question),
            interventions,
            None,  # answers are judged when they are read
            CompareSettings(settings.max_new_tokens, settings.detail),
        )
        Recovery(to_dataset([rows], vlm)).save(folder / RECOVERY)
        trace.save(folder / TRACE)

    there = make_each(entries, make, command="recover")
    if not there:
        raise InputError("no question could be run: see the lines above")
    parts = []
    for question in there:
        with entries[question].reading() as folder:
            parts.append(Recovery.load(folder / RECOVERY))
        _judge(parts[-1], question.answer)
    return Recovery.join(parts), there


def _judge(part: Recovery, truth: str | None) -> None:
    """Judge answers by today's rule and truth, whenever the question was run."""
    for i, (before, *others) in enumerate(part.data["answer"].values.tolist()):
        answers = (before, *others)
        part.data["answer_changed"].values[i] = [as_number(is_changed(a, before)) for a in answers]
        part.data["right"].values[i] = [
            as_number(None if truth is None else judge(a, truth).right) for a in answers
        ]


def _fitting(
    vlm: VLM,
    questions: list[Question],
    settings: RecoverySettings,
    interventions: Iterable[Intervention],
) -> list[Question]:
    """Leave out lines with a prompt that an intervention does not fit; each is reported."""
    good, problem = [], ""
    for question in progress(questions, description="prompts"):
        try:
            prompt = settings.prompt(vlm, question)
            for intervention in interventions:
                intervene(vlm, prompt, intervention)  # checks the prompt; it is never entered
        except InputError as error:
            problem = f"line {question.line}: {error}"
            print(one_line(f"attnlens: skipped {problem}"), file=sys.stderr)
        else:
            good.append(question)
    if not good:
        raise InputError(f"no line can be used; {problem}")
    return good
