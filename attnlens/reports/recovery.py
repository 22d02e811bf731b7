"""What ``attnlens recover`` writes: runs, tables, figure, summary."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnlens
from attnlens.errors import InputError
from attnlens.files import check_results, write_folder
from attnlens.reports.asking import RecoverySettings
from attnlens.reports.jobs import Job
from attnlens.text import one_line, shortened

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery


NAME_WIDTH = 40
"""Longest name in a printed table, in characters."""


def run_recovery(jobs: list[Job], settings: RecoverySettings) -> int:
    """Run all questions, print the table, and write the folder whole or not at all.

    Returns
    -------
    int
        How many questions could not be run.

    Raises
    ------
    InputError
        If the model cannot be loaded, or an intervention does not fit a prompt, before anything
        is generated.
    """
    import numpy as np

    from attnlens.reports.many import remove_leftovers
    from attnlens.reports.recovery_runs import run_lines, run_one, write_steps
    from attnlens.reports.table import say_cut_off

    lines, asked = jobs[0].line is not None, len(jobs)
    root = Path(settings.save_folder)
    folder = root / f"{'batch' if lines else jobs[0].folder}_recovery"
    check_results(folder, "summary.json", "a recovery")
    vlm = settings.load()
    if lines:
        remove_leftovers(folder)
        result, jobs = run_lines(vlm, jobs, settings, root / "batch_recovery_runs" / settings.mode)
    else:
        result = run_one(vlm, jobs[0], settings)
    table = result.table(settings.definition)
    with write_folder(folder, replace=True) as temporary:
        table.to_csv(temporary / "table.csv", index=False)
        _write_places(result, temporary, settings)
        write_steps(result, jobs, temporary / "steps.parquet")
        try:
            result.save(temporary / "recovery.nc")
        except InputError as error:  # too large for the format: keep everything else
            print(f"attnlens recover: no recovery.nc: {error}", file=sys.stderr)
        text = json.dumps(_summary(result, jobs, settings), indent=2, ensure_ascii=False)
        (temporary / "summary.json").write_text(text + "\n", encoding="utf-8")
        _draw(result, temporary, settings)
    print(as_text(result, settings.definition))
    for run in result.summary(settings.definition)["never_fired"]:
        print(one_line(f"{run}: the trigger {settings.when!r} never fired"))
    lengths = result.data["steps"].where(result.data["cut_off"] == 1).max("run").values
    cut_off = lengths[~np.isnan(lengths)].astype(int).tolist()
    say_cut_off("recover", cut_off, len(jobs), "questions have an answer that")
    print(one_line(f"written to {folder}"))
    return asked - len(jobs)


def _write_places(result: Recovery, folder: Path, settings: RecoverySettings) -> None:
    """Write rises by layer, or by layer and head, of every intervention."""
    import pandas as pd

    if settings.detail == "step":
        return
    tables = []
    for run in result.interventions:
        try:
            by = result.by_head if settings.detail == "head" else result.by_layer
            tables.append(by(run, settings.definition).assign(intervention=run))
        except InputError:  # a definition that reduces heads itself
            tables.append(result.by_layer(run, settings.definition).assign(intervention=run))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "intervention", table.pop("intervention"))
    name = "heads.csv" if "head" in table else "layers.csv"
    table.to_csv(folder / name, index=False)


def as_text(result: Recovery, definition: str) -> str:
    """Lay the table out for a terminal; a mean over fewer prompts than all says over how many."""
    from attnlens.measures.definitions import get_definition
    from attnlens.measures.statistics import LEAST_FOR_MEANS, LEAST_FOR_PROPORTIONS

    own = result.table(definition).to_dict("records")
    both: list[dict[Any, Any]] = [{}] * len(own)
    if get_definition(definition).counts_copied:
        both = result.table(definition, include_copied=True).to_dict("records")
    samples = result.data.sizes["sample"]
    names = [shortened(one_line(row["intervention"]), NAME_WIDTH) for row in own]
    wide = max(24, *(len(name) + 1 for name in names))
    lines = [
        f"rise of visual share ({definition}) over the untouched run, mean over the steps from the "
        f"trigger on, {samples} prompt{'s' if samples > 1 else ''}",
    ]
    columns = {"rise": 9, "95% interval": 20, "with copied": 13}
    columns |= {"KL (nats)": 11, "changed": 9, "right": 7, "inserted": 10}
    table = []
    for row, counted in zip(own, both, strict=True):
        interval = "-"
        if math.isfinite(row["rise_low"]):
            interval = f"[{row['rise_low']:.3f}, {row['rise_high']:.3f}]"
        table.append(
            [
                _cell(row, "rise", ".3f", samples),
                interval,
                _cell(counted, "rise", ".3f", samples),
                _cell(row, "kl", ".4f", samples),
                _cell(row, "answer_changed", ".0%", samples),
                _cell(row, "right", ".0%", samples),
                _cell(row, "inserted", ".0f", samples),
            ]
        )
    widths = [
        max(least, *(len(cell) + 2 for cell in cells))
        for least, cells in zip(columns.values(), zip(*table, strict=True), strict=True)
    ]
    for name, cells in zip(("intervention", *names), (columns, *table), strict=True):
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{name:{wide}}{''.join(padded)}")
    notes = ["with copied: inserted tokens counted as image"]
    if any("(" in cell for cells in table for cell in cells):
        notes.insert(0, "(n): over n prompts, in which it acted or the true answer is known")
    if samples < LEAST_FOR_PROPORTIONS:
        least = f"{LEAST_FOR_MEANS} prompts (--data)"
        notes.append(f"an interval needs {least}, of answers {LEAST_FOR_PROPORTIONS}")
    return "\n".join([*lines, "; ".join(notes)])


def _cell(row: dict[Any, Any], name: str, layout: str, samples: int) -> str:
    """Show a mean, with the number of prompts behind it where that is not the number of all."""
    value, behind = row.get(name, math.nan), row.get(f"{name}_samples", 0)
    if not math.isfinite(value):
        return "-"
    return format(value, layout) + (f" ({behind})" if behind < samples else "")


def _summary(result: Recovery, jobs: list[Job], settings: RecoverySettings) -> dict[str, Any]:
    from importlib.metadata import version

    data = result.data
    return {
        **result.summary(settings.definition),
        "questions": [
            {
                "image": job.image,
                "question": job.question,
                "expected": job.answer,
                "answers": {
                    str(run): str(data["answer"].values[i, j])
                    for j, run in enumerate(data["run"].values)
                },
            }
            for i, job in enumerate(jobs)
        ],
        "settings": asdict(settings),
        "versions": {
            "attnlens": attnlens.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }


def _draw(result: Recovery, folder: Path, settings: RecoverySettings) -> None:
    from attnlens import plots

    try:
        figure = plots.recovery(result, settings.definition)
    except InputError as error:  # nothing acted: the tables say so
        print(f"attnlens recover: no figure: {error}", file=sys.stderr)
        return
    for suffix in settings.formats:
        plots.save(figure, folder / f"recovery.{suffix}")
