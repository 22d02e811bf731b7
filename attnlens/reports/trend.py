"""The trend of visual attention over one answer: generated, recorded, measured, drawn, written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.files import check_writable
from attnlens.progress import progress
from attnlens.reports.asking import TrendSettings
from attnlens.reports.jobs import Job
from attnlens.reports.many import refuse_other_questions, remove_leftover_files, run_each
from attnlens.reports.notes import made_again, model_note, note_of, read_note
from attnlens.reports.table import say_cut_off, steps_table, write_parquet
from attnlens.reports.trend_files import SUMMARY, note_of_trace, write_run
from attnlens.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from attnlens.models.load import VLM
    from attnlens.recording.trace import Trace

SHOWN = ("save_folder", "formats", "definition")
"""Settings that an answer does not follow from, but what is shown of it."""


def run_jobs(jobs: list[Job], settings: TrendSettings) -> int:
    """Run the questions one after the other; how many failed.

    Questions of a file are resumed: see ``attnlens.reports.many``. When all have been asked, one
    table of all steps is written beside their folders.
    """
    root = Path(settings.save_folder)
    for job in jobs:
        check_writable(root / job.folder)
    if jobs[0].line is None:
        check_replaced(jobs[0], root / jobs[0].folder, settings.mode)
    vlm = settings.load()
    check_layers(settings.layers, vlm)
    if jobs[0].line is None:
        print(one_line(f"written to {run_job(vlm, jobs[0], settings, show=True)}"))
        return 0
    there = record_each(vlm, jobs, settings, command="trend")
    if there:
        path = root / f"{settings.mode}_steps.parquet"
        remove_leftover_files(path)
        table = write_table(there, root, path, settings.mode)
        print(one_line(f"written to {table}"))
    return len(jobs) - len(there)


def check_replaced(job: Job, folder: Path, mode: str) -> None:
    """Refuse a folder of another picture of that name, and say when another answer is replaced.

    Raises
    ------
    InputError
        If the summary in the folder is of another picture.
    """
    before = read_note(folder / SUMMARY)
    if before.get("image_sha256", job.image_sha256) != job.image_sha256:
        raise InputError(
            f"{str(folder)!r} holds what was found for another picture ({before.get('image')!r}) "
            f"than {job.image!r}: give another --save_folder, or move it away"
        )
    if before.get("question", job.question) != job.question:
        text = (
            f"attnlens trend: {str(folder)!r} holds the answer to another question "
            f"({before['question']!r}); what was written there in mode {mode} is replaced"
        )
        print(one_line(text), file=sys.stderr)


def record_each(
    vlm: VLM, jobs: list[Job], settings: TrendSettings, *, command: str, pictures: bool = True
) -> list[Job]:
    """Ask the questions of a file that have not been asked yet; those whose folders are there."""
    root, name = Path(settings.save_folder), f"{settings.mode}_settings.json"
    model = model_note(vlm)
    shown: dict[str, Any] = {"definition": settings.definition, "pictures": ["none"]}
    if pictures:
        shown["pictures"] = list(settings.formats)
    refuse_other_questions(jobs, root, name)

    def note_of_job(job: Job) -> dict[str, Any]:
        asked = note_of(job, settings, leaving_out=SHOWN)
        return {**asked, "model": model, "shown": {**shown, "answer": job.answer}}

    def work(job: Job, note: dict[str, Any]) -> None:
        folder, trace = root / job.folder, None
        asked = {**read_note(folder / name), "shown": note["shown"]}
        if asked == note:  # only what is shown is another
            trace = load_trace(folder / f"{settings.mode}_trace.zarr")
        run_job(vlm, job, settings, show=False, pictures=pictures, note=note, trace=trace)

    return run_each(
        jobs,
        lambda job: root / job.folder,
        note_of_job,
        work,
        command=command,
        name=name,
    )


def load_trace(path: Path) -> Trace | None:
    """Load a trace; None where it is not there or cannot be read."""
    from attnlens.recording.trace import Trace

    try:
        return Trace.load(path)
    except InputError:
        return None


def write_table(jobs: list[Job], root: Path, path: Path, mode: str) -> Path:
    """Write one row for each step of all questions; see ``attnlens.reports.table``."""
    from attnlens.recording.trace import Trace

    cut_off: list[int] = []

    def tables() -> Iterator[pd.DataFrame]:
        for job in progress(jobs, description="table"):
            path = root / job.folder / f"{mode}_trace.zarr"
            with made_again(note_of_trace(path)):
                trace = Trace.load(path)
            if trace.cut_off:
                cut_off.append(trace.data.sizes["step"])
            yield steps_table(trace, job)

    write_parquet(path, tables())
    say_cut_off("trend", cut_off, len(jobs))
    return path


def check_layers(layers: list[int] | None, vlm: VLM) -> None:
    """Refuse layers that the model lacks, before the first question is asked."""
    from attnlens.recording.record import choose_layers

    choose_layers(layers, len(vlm.family.parts(vlm.model).attention))


def run_job(
    vlm: VLM,
    job: Job,
    settings: TrendSettings,
    *,
    show: bool,
    pictures: bool = True,
    note: dict[str, Any] | None = None,
    trace: Trace | None = None,
) -> Path:
    """Ask one question and write its folder.

    Parameters
    ----------
    vlm
        The model.
    job, settings
        What to ask and how.
    show
        Whether the answer is printed as it is generated.
    pictures
        Whether figures are drawn.
    note
        What the results follow from, written beside them; see ``attnlens.reports.notes``.
    trace
        The answer, where it has been recorded before.

    Returns
    -------
    pathlib.Path
        The folder. What is not this run's stays (traces and trends of other modes); it appears
        whole or not at all.
    """
    if trace is None:
        prompt = settings.prompt(vlm, job)
        trace = _generate(vlm, prompt, settings, show)
    folder = Path(settings.save_folder) / job.folder
    try:
        left_out = write_run(folder, trace, job, settings, pictures, note)
    except (Exception, KeyboardInterrupt):
        if not pictures:
            raise
        # the generation may have taken an hour: keep it, whatever keeps a picture from being drawn
        kept = None if note is None else {**note, "shown": "no pictures"}
        write_run(folder, trace, job, settings, False, kept)
        print(f"attnlens trend: no pictures; trace and summary are in {folder}", file=sys.stderr)
        raise
    if job.line is None:  # of a file they are counted, when all have been asked
        say_cut_off("trend", [trace.data.sizes["step"]] if trace.cut_off else [], 1)
    if left_out:
        print(f"attnlens trend: left out {one_line(left_out)}", file=sys.stderr)
    return folder


def _generate(vlm: VLM, prompt: Any, settings: TrendSettings, show: bool) -> Trace:
    from attnlens.experiments.run import run
    from attnlens.reports.stream import PrintedAnswer

    options: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        # a checkpoint's own top_k or top_p would cut what the temperature spreads
        options = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
    if show:
        options["streamer"] = PrintedAnswer(vlm.tokenizer)
    return run(
        vlm,
        prompt,
        settings.max_new_tokens,
        seed=settings.seed,
        layers=settings.layers,
        **options,
    )
