"""The folder of one question that ``attnlens trend`` writes: trace, table, pictures, note."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.answers import final_answer
from attnlens.errors import InputError
from attnlens.files import write_folder
from attnlens.models.modes import VERIFICATIONS, verification_tag
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.reports.notes import write_note
from attnlens.reports.table import steps_table, write_csv

if TYPE_CHECKING:
    from attnlens.recording.trace import Trace
    from attnlens.reports.asking import TrendSettings

SUMMARY = "summary.json"
"""Name of the file that says what was asked and what came of it."""
SHARED = ("summary", "Step_attention_all_tokens")
"""Names of files that every mode writes: those of the last one stay."""


def note_of_trace(path: Path) -> Path:
    """Return where the note lies that a question's trace was written with."""
    return path.with_name(f"{path.name.removesuffix('_trace.zarr')}_settings.json")


def write_run(
    folder: Path,
    trace: Trace,
    job: Job,
    settings: TrendSettings,
    pictures: bool,
    note: dict[str, Any] | None = None,
) -> str:
    """Write the folder; which pictures were left out, and why."""
    mode = settings.mode
    left_out = ""
    with write_folder(folder, replace=True) as temporary:
        if folder.is_dir():
            shutil.copytree(
                folder,
                temporary,
                dirs_exist_ok=True,
                symlinks=True,
                ignore=functools.partial(_own_files, folder, mode),
            )
        trace.save(temporary / f"{mode}_trace.zarr", replace=True)
        text = json.dumps(summary(trace, job, settings), indent=2, ensure_ascii=False)
        (temporary / SUMMARY).write_text(text + "\n", encoding="utf-8")
        if job.line is None:  # of a file, one table holds the steps of all questions
            write_csv(temporary / f"{mode}_steps.csv", steps_table(trace, job))
        if pictures:
            left_out = _draw(temporary, trace, settings)
        if note is not None:
            write_note(
                temporary / f"{mode}_settings.json", note, beginning=f"{mode}_", shared=SHARED
            )
    return left_out


def _own_files(folder: Path, mode: str, here: str, names: list[str]) -> set[str]:
    """Which names in a folder an earlier run of the mode has written: they give way."""
    if Path(here) != folder:
        return set()
    pictures = (f"{mode}_step_attention", f"{mode}_step_attention_with_tokens")
    own = {f"{mode}_trace.zarr", f"{mode}_steps.csv", f"{mode}_settings.json"}
    for suffix in ("png", "pdf", "svg", "json"):
        own |= {f"{name}.{suffix}" for name in (*pictures, *SHARED)}
    return own.intersection(names)


def _draw(folder: Path, trace: Trace, settings: TrendSettings) -> str:
    from attnlens import plots

    definition = settings.definition
    figures = {
        f"{settings.mode}_step_attention": lambda: plots.trend(trace, definition),
        f"{settings.mode}_step_attention_with_tokens": lambda: plots.trend(
            trace, definition, tokens=True
        ),
        "Step_attention_all_tokens": lambda: plots.tokens(trace, definition),
    }
    missing: dict[str, str] = {}
    for name, draw in progress(figures.items(), total=len(figures), description="drawing"):
        try:
            figure = draw()
        except InputError as error:  # an answer of one token has no step under some definitions
            missing[name] = str(error)
            continue
        for suffix in settings.formats:
            plots.save(figure, folder / f"{name}.{suffix}")
    return f"{', '.join(missing)}: {next(iter(missing.values()))}" if missing else ""


def summary(trace: Trace, job: Job, settings: TrendSettings) -> dict[str, Any]:
    """Answer, regions, decay, refocus, settings and versions, as plain JSON-able values.

    Parameters
    ----------
    trace
        The recorded generation.
    job, settings
        What was asked and how.
    """
    from attnlens import measures

    definition = settings.definition
    values: dict[str, Any] = {
        "image": job.image,
        "image_sha256": job.image_sha256,
        "question": job.question,
        "mode": settings.mode,
        "response": trace.text,
        "answer": final_answer(trace.text),
        "expected": job.answer,
        "cut_off": trace.cut_off,
        "steps": int(trace.data.sizes["step"]),
        "definition": definition,
        "regions": [asdict(region) for region in trace.regions],
        "settings": asdict(settings),
        "provenance": {k: v for k, v in trace.attrs.items() if k != "special_token_ids"},
        "versions": trace.attrs["versions"],
    }
    table = measures.region_summary(trace, definition=definition)
    values["region_summary"] = json.loads(table.to_json(orient="records"))
    region = VERIFICATIONS[verification_tag(settings.words) or "<back>"]
    for name, compute in (
        ("decay", measures.decay),
        ("refocus", functools.partial(measures.refocus, region=region)),
    ):
        try:
            values[name] = compute(trace, definition=definition).as_dict()
        except InputError as error:  # too short, or no <back>: said, not hidden
            values[name] = {"not_available": str(error)}
    return values
