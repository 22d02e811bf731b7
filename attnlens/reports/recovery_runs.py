"""The runs behind ``attnlens recover``: of one question, or of the lines of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from attnlens.answers import is_changed, is_right
from attnlens.errors import InputError
from attnlens.experiments.recover import compare_runs, named_interventions, recover, warm_up
from attnlens.experiments.recovery import Recovery
from attnlens.experiments.recovery_data import to_dataset
from attnlens.files import write_folder
from attnlens.interventions.session import intervene
from attnlens.models.images import open_image
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.reports.many import refuse_other_questions, run_each
from attnlens.reports.notes import NOTE, made_again, model_note, note_of, write_note
from attnlens.reports.table import write_parquet
from attnlens.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attnlens.interventions.base import Intervention
    from attnlens.models.load import VLM
    from attnlens.reports.asking import RecoverySettings

LEFT_OUT = ("save_folder", "formats", "definition")
"""RecoverySettings that the runs do not follow from."""


def run_one(vlm: VLM, job: Job, settings: RecoverySettings) -> Recovery:
    """Run a question of the command line.

    Raises
    ------
    InputError
        If an intervention does not fit the prompt, before anything is generated.
    """
    return recover(
        vlm,
        settings.prompt(vlm, job),
        settings.parsed(),
        settings.max_new_tokens,
        expected=job.answer,
        detail=settings.detail,
    )


def run_lines(
    vlm: VLM, jobs: list[Job], settings: RecoverySettings, folder: Path
) -> tuple[Recovery, list[Job]]:
    """Run the questions of a file that have not been run yet, each kept when it is done.

    Parameters
    ----------
    vlm, jobs, settings
        The model, the questions and the command's settings.
    folder
        Each question's part of the result goes into a folder of its own there: ``recovery.nc``
        and ``trace.zarr``, the untouched run.

    Returns
    -------
    tuple
        The whole result, and the questions in it.

    Raises
    ------
    InputError
        If no question can be run.
    """
    interventions = named_interventions(settings.parsed())
    refuse_other_questions(jobs, folder, NOTE)
    fitting = _fitting(vlm, jobs, settings, interventions.values())
    warm_up(vlm, settings.prompt(vlm, fitting[0]))

    shown = {name: open_image(name)[1].sha256 for name in settings.pictures()}

    model = model_note(vlm)

    def note_of_job(job: Job) -> dict[str, Any]:
        asked = note_of(job, settings, leaving_out=LEFT_OUT)
        return {**asked, "answer": job.answer, "model": model, "pictures": shown}

    def work(job: Job, note: dict[str, Any]) -> None:
        prompt = settings.prompt(vlm, job)
        rows, trace = compare_runs(
            vlm,
            prompt,
            interventions,
            job.answer,
            settings.max_new_tokens,
            settings.detail,
            False,
            0,
            {"do_sample": False},
            iter(()),
        )
        part = Recovery(to_dataset([rows], vlm))
        with write_folder(folder / job.folder, replace=True) as temporary:
            part.save(temporary / "recovery.nc")
            trace.save(temporary / "trace.zarr")
            write_note(temporary / NOTE, note)

    there = run_each(
        fitting,
        lambda job: folder / job.folder,
        note_of_job,
        work,
        command="recover",
    )
    if not there:
        raise InputError("no question could be run: see the lines above")
    parts = []
    for job in there:
        with made_again(folder / job.folder / NOTE):
            part = Recovery.load(folder / job.folder / "recovery.nc")
        # by the rule of today, whenever the question was run
        for i, (before, *others) in enumerate(part.data["answer"].values.tolist()):
            changed = [float(is_changed(answer, before)) for answer in (before, *others)]
            part.data["answer_changed"].values[i] = changed
            if job.answer is not None:
                right = [float(is_right(answer, job.answer)) for answer in (before, *others)]
                part.data["right"].values[i] = right
        parts.append(part)
    return Recovery.join(parts), there


def _fitting(
    vlm: VLM, jobs: list[Job], settings: RecoverySettings, interventions: Iterable[Intervention]
) -> list[Job]:
    """Leave out the lines whose prompt an intervention does not fit; each is reported."""
    good, problem = [], ""
    for job in progress(jobs, description="prompts"):
        try:
            prompt = settings.prompt(vlm, job)
            for intervention in interventions:
                intervene(vlm, prompt, intervention)  # made, never opened: it checks what fits
        except InputError as error:
            problem = f"line {job.line}: {error}"
            print(one_line(f"attnlens: skipped {problem}"), file=sys.stderr)
        else:
            good.append(job)
    if not good:
        raise InputError(f"no line can be used; {problem}")
    return good


def write_steps(result: Recovery, jobs: list[Job], path: Path) -> None:
    """Write a tidy Parquet table: a row for each question, run and step of the forced twins."""
    write_parquet(path, _tables(result, jobs))


def _tables(result: Recovery, jobs: list[Job]) -> Iterator[pd.DataFrame]:
    data = result.data
    for place, job in enumerate(jobs):
        for run in data["run"].values.tolist():
            one = data.isel(sample=place).sel(run=run)
            known = one["share"].notnull().any("definition").values
            steps = int(known.nonzero()[0][-1]) + 1 if known.any() else 0
            table = pd.DataFrame({"step": data["step"].values[:steps]})
            table.insert(0, "line", pd.Series([job.line] * steps, dtype="Int64"))
            table.insert(1, "image", pd.Series([job.image] * steps, dtype="string"))
            table.insert(2, "run", pd.Series([run] * steps, dtype="string"))
            first = float(one["first_step"])
            table["since_trigger"] = table["step"] - first  # missing where it never fired
            for name in ("kl", "hellinger"):
                table[name] = one[name].values[:steps]
            for definition in data["definition"].values.tolist():
                for kind in ("share", "share_with_copied", "rise", "rise_with_copied"):
                    column = f"{definition}_{kind}"
                    table[column] = one[kind].sel(definition=definition).values[:steps]
            yield table
