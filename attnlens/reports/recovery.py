"""What ``attnlens recover`` writes: runs, tables, figure, summary."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnlens._version import versions
from attnlens.errors import InputError
from attnlens.files import check_results, check_writable, clear_leftover_folders, write_folder
from attnlens.measures.definitions import get_definition
from attnlens.reports.table import print_cut_off, print_unjudged, write_parquet
from attnlens.runs.dataset import Question
from attnlens.stores import located
from attnlens.text import one_line, shortened

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery
    from attnlens.runs.settings import RecoverySettings


NAME_WIDTH = 40
"""Longest name in a printed table, in characters."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOutput:
    """What is shown of a recovery, and where it is written."""

    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)
    definition: str = "mass"

    def check(self) -> None:
        """Refuse an unknown definition, and a folder that cannot be written."""
        get_definition(self.definition)
        check_writable(located(self.save_folder))


def check_folder(questions: list[Question], output: RecoveryOutput) -> Path:
    """Return the folder for the results of a question, or of those of a file together.

    Raises
    ------
    InputError
        If it cannot be written, or holds something else.
    """
    name = "batch" if questions[0].line is not None else questions[0].folder
    folder = located(output.save_folder) / f"{name}_recovery"
    check_results(folder, "summary.json", "a recovery")
    return folder


def report_recovery(
    result: Recovery,
    questions: list[Question],
    settings: RecoverySettings,
    output: RecoveryOutput,
    folder: Path,
) -> None:
    """Print the table, and write the folder whole or not at all.

    Parameters
    ----------
    result, questions
        The recovery of these questions together.
    settings, output
        What was run, and what is shown of it.
    folder
        From ``check_folder``.
    """
    table = result.table(output.definition)
    clear_leftover_folders([folder])
    with write_folder(folder, replace=True) as temporary:
        table.to_csv(temporary / "table.csv", index=False)
        _write_places(result, temporary, settings.detail, output.definition)
        write_parquet(temporary / "steps.parquet", _steps(result, questions))
        result.save(temporary / "recovery.zarr")
        text = json.dumps(
            _summary(result, questions, settings, output), indent=2, ensure_ascii=False
        )
        (temporary / "summary.json").write_text(text + "\n", encoding="utf-8")
        _draw(result, temporary, output)
    print(as_text(result, output.definition))
    for run in result.summary(output.definition)["never_fired"]:
        print(one_line(f"{run}: the trigger {settings.when!r} never fired"))
    lengths = result.data["steps"].where(result.data["cut_off"] == 1).max("run").values
    cut_off = Counter(lengths[~np.isnan(lengths)].astype(int).tolist())
    print_cut_off("recover", cut_off, len(questions), "questions have an answer that")
    known = np.array([question.answer is not None for question in questions])
    unjudged = int(np.isnan(result.data["right"].values[known]).sum())
    print_unjudged("recover", unjudged, "answers, all runs counted,")
    print(one_line(f"written to {folder}"))


def _write_places(result: Recovery, folder: Path, detail: str, definition: str) -> None:
    """Write rises by layer, or by layer and head, of every intervention."""
    if detail == "step":
        return
    tables = []
    for run in result.interventions:
        try:
            by = result.by_head if detail == "head" else result.by_layer
            tables.append(by(run, definition).assign(intervention=run))
        except InputError:  # a definition that reduces heads itself
            tables.append(result.by_layer(run, definition).assign(intervention=run))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "intervention", table.pop("intervention"))
    name = "heads.csv" if "head" in table else "layers.csv"
    table.to_csv(folder / name, index=False)


def as_text(result: Recovery, definition: str) -> str:
    """Lay the table out for a terminal; a mean over fewer prompts than all says over how many."""
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
        notes.append(f"intervals need {least}; for answers, {LEAST_FOR_PROPORTIONS}")
    return "\n".join([*lines, "; ".join(notes)])


def _cell(row: dict[Any, Any], name: str, layout: str, samples: int) -> str:
    """Show a mean, with the number of prompts behind it where that is not the number of all."""
    value, behind = row.get(name, math.nan), row.get(f"{name}_samples", 0)
    if not math.isfinite(value):
        return "-"
    return format(value, layout) + (f" ({behind})" if behind < samples else "")


def _summary(
    result: Recovery, questions: list[Question], settings: RecoverySettings, output: RecoveryOutput
) -> dict[str, Any]:
    data = result.data
    return {
        **result.summary(output.definition),
        "questions": [
            {
                "image": question.image,
                "question": question.text,
                "expected": question.answer,
                "answers": {
                    str(run): str(data["answer"].values[i, j])
                    for j, run in enumerate(data["run"].values)
                },
            }
            for i, question in enumerate(questions)
        ],
        "settings": {**asdict(settings), **asdict(output)},
        "versions": versions(),
    }


def _draw(result: Recovery, folder: Path, output: RecoveryOutput) -> None:
    from attnlens import plots

    try:
        figure = plots.recovery(result, output.definition)
    except InputError as error:  # nothing acted: the tables say so
        print(f"attnlens recover: no figure: {error}", file=sys.stderr)
        return
    for suffix in output.formats:
        plots.save(figure, folder / f"recovery.{suffix}")


def _steps(result: Recovery, questions: list[Question]) -> Iterator[pd.DataFrame]:
    """Tidy tables with a row for each run and step of the forced twins, a table a run."""
    data = result.data
    for place, question in enumerate(questions):
        for run in data["run"].values.tolist():
            one = data.isel(sample=place).sel(run=run)
            known = one["share"].notnull().any("definition").values
            steps = int(known.nonzero()[0][-1]) + 1 if known.any() else 0
            table = pd.DataFrame({"step": data["step"].values[:steps]})
            table.insert(0, "line", pd.Series([question.line] * steps, dtype="Int64"))
            table.insert(1, "image", pd.Series([question.image] * steps, dtype="string"))
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
