"""The runs behind ``attnlens dilution``, where a model is at hand: each kept when it is done.

Of every question: a recorded run (Theorem 3.1), and where they are asked for twins with inserted
visual tokens (Theorem 3.2) and sampled answers with and without their image (mutual information).
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.experiments.sampled import sampled_dependence
from attnlens.experiments.twins import insertions, twins
from attnlens.files import write_folder
from attnlens.netcdf import write_netcdf
from attnlens.recording.trace import Trace
from attnlens.reports.asking import TrendSettings
from attnlens.reports.jobs import Job
from attnlens.reports.many import ANSWERS, TWINS, run_each
from attnlens.reports.notes import (
    NOTE,
    is_whole,
    made_again,
    model_note,
    note_of,
    read_note,
    write_note,
)
from attnlens.reports.trend import SHOWN, check_layers, record_each
from attnlens.reports.trend_files import note_of_trace

if TYPE_CHECKING:
    from attnlens.models.load import VLM

OTHERS = 8
"""How many other images an answer is measured against, at most."""


@dataclass(frozen=True)
class Runs:
    """What was run.

    Attributes
    ----------
    jobs
        The questions whose runs are there.
    whole
        Those of which everything that was asked for is there.
    traces
        Path of each question's trace.
    twins
        For each question, paths of the twins' traces by name; empty where none were asked for.
    answers
        For each question, paths of what ``dependence`` gave for its sampled answers.
    """

    jobs: list[Job]
    whole: list[Job]
    traces: list[Path]
    twins: list[dict[str, Path]]
    answers: list[list[Path]]


def run_questions(
    vlm: VLM, jobs: list[Job], settings: TrendSettings, *, insertion: bool, samples: int
) -> Runs:
    """Run what is not there yet.

    Parameters
    ----------
    vlm, jobs, settings
        The model, the questions of a file, and how they are asked. Folders go into
        ``settings.save_folder``.
    insertion
        Whether twins with inserted visual tokens are run: in the middle of every answer.
    samples
        How many answers to each question are sampled for the mutual information; 0 for none.

    Raises
    ------
    InputError
        If no question could be run.
    """
    root = Path(settings.save_folder)
    check_layers(settings.layers, vlm)
    there = record_each(vlm, jobs, settings, command="dilution", pictures=False)
    paths = {job: root / job.folder / f"{settings.mode}_trace.zarr" for job in there}
    if not there:
        raise InputError("no question could be run: see the lines above")
    twinned = _twins(vlm, there, settings, paths, root) if insertion else []
    answered = _answers(vlm, jobs, settings, samples, root) if samples else []
    asked = [there, *([twinned] if insertion else []), *([answered] if samples else [])]
    return Runs(
        jobs=there,
        whole=[job for job in jobs if all(job in part for part in asked)],
        traces=[paths[job] for job in there],
        twins=[
            {n: _twin_folder(root, settings, job) / f"{n}.zarr" for n in insertions(1)}
            for job in twinned
        ],
        answers=[
            [_answer_folder(root, settings, job) / f"{i}.nc" for i in range(samples)]
            for job in answered
        ],
    )


def _twin_folder(root: Path, settings: TrendSettings, job: Job) -> Path:
    return root / f"{settings.mode}{TWINS}" / job.folder


def _answer_folder(root: Path, settings: TrendSettings, job: Job) -> Path:
    return root / f"{settings.mode}{ANSWERS}" / job.folder


def _twins(
    vlm: VLM, jobs: list[Job], settings: TrendSettings, traces: dict[Job, Path], root: Path
) -> list[Job]:
    model = model_note(vlm)

    def note_of_job(job: Job) -> dict[str, Any]:
        asked = note_of(job, settings, leaving_out=SHOWN)
        with made_again(note_of_trace(traces[job])):
            tokens = Trace.load(traces[job]).tokens
        said = hashlib.sha256(repr(tokens).encode()).hexdigest()
        return {**asked, "model": model, "said": said, "insertions": list(insertions(1))}

    def work(job: Job, note: dict[str, Any]) -> None:
        prompt = settings.prompt(vlm, job)
        found = twins(vlm, prompt, Trace.load(traces[job]), layers=settings.layers)
        with write_folder(_twin_folder(root, settings, job), replace=True) as temporary:
            for name, twin in found.items():
                twin.save(temporary / f"{name}.zarr")
            write_note(temporary / NOTE, note)

    return run_each(
        jobs,
        lambda job: _twin_folder(root, settings, job),
        note_of_job,
        work,
        command="dilution (insertions)",
    )


def _answers(
    vlm: VLM, jobs: list[Job], settings: TrendSettings, samples: int, root: Path
) -> list[Job]:
    model = model_note(vlm)

    def others(job: Job) -> list[Job]:
        """Other images of the file, in order from the question's own on."""
        place = jobs.index(job)
        turned = [*jobs[place + 1 :], *jobs[:place]]
        by_image = {other.image_sha256: other for other in turned}
        by_image.pop(job.image_sha256, None)
        return list(by_image.values())[:OTHERS]

    if len({job.image_sha256 for job in jobs}) < 2:
        print(
            "attnlens dilution: all questions have one image, so answers are measured against no "
            "image alone: their average over other images, and a lower bound, need several",
            file=sys.stderr,
        )

    def note_of_job(job: Job) -> dict[str, Any]:
        asked = note_of(job, settings, leaving_out=(*SHOWN, "temperature", "layers"))
        shown = [other.image_sha256 for other in others(job)]
        return {**asked, "model": model, "samples": samples, "others": shown}

    def serves(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether there are as many answers: the i-th is the same however many follow."""
        return {**before, "samples": samples} == now and before.get("samples", 0) >= samples

    def work(job: Job, note: dict[str, Any]) -> None:
        folder = _answer_folder(root, settings, job)
        before = read_note(folder / NOTE)
        known = 0
        if {**before, "samples": samples} == note and is_whole(folder / NOTE):
            known = before.get("samples", 0)
        prompt = settings.prompt(vlm, job)
        found = sampled_dependence(
            vlm,
            prompt,
            samples - known,
            [other.image for other in others(job)],
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed + known,
        )
        with write_folder(folder, replace=True) as temporary:
            for i in range(known):
                shutil.copy2(folder / f"{i}.nc", temporary)
            for i, one in enumerate(found, known):
                write_netcdf(one, temporary / f"{i}.nc")
            write_note(temporary / NOTE, note)

    return run_each(
        jobs,
        lambda job: _answer_folder(root, settings, job),
        note_of_job,
        work,
        command="dilution (sampled answers)",
        serves=serves,
    )
