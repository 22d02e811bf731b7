"""What ``attnlens replay --intervention`` writes of forced twins: their steps, and the recovery."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnlens.experiments import comparison
from attnlens.experiments.recovery import UNTOUCHED
from attnlens.files import clear_leftover_files, clear_leftover_folders, write_file
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.recovery import mean_from
from attnlens.measures.statistics import mean_interval
from attnlens.progress import progress
from attnlens.reports.table import steps_table, write_parts
from attnlens.reports.trend import TrendOutput
from attnlens.runs.recordings import read_trace
from attnlens.runs.twins import Twins
from attnlens.stores import located
from attnlens.text import counted, one_line

if TYPE_CHECKING:
    from attnlens.recording.trace import Trace
    from attnlens.runs.settings import InterventionSettings

COUNTED = {"rise": False, "rise_with_copied": True}
"""Rises by name: whether inserted tokens count as image."""


@dataclass
class _Rises:
    """What one intervention did to the answers that have been read."""

    never: int = 0
    """In how many it never acted."""
    acted: int = 0
    """In how many it acted."""
    rises: array = field(default_factory=lambda: array("d"))
    """Of each of these, [counted, definition]."""

    def add(self, untouched: Trace, twin: Trace) -> None:
        acted = twin.attrs["interventions"]
        if not acted:
            self.never += 1
            return
        first = min(int(event["step"]) for event in acted)
        before, after = (comparison.Run(trace, None, float("nan")) for trace in (untouched, twin))
        self.acted += 1
        for counted_too in COUNTED.values():
            rises = after.shares("step", counted_too) - before.shares("step", counted_too)
            self.rises.extend(mean_from(rise, first) for rise in rises)


def report_twins(twins: Twins, interventions: InterventionSettings, output: TrendOutput) -> int:
    """Write for each mode the steps of untouched answers and twins, and what interventions bring.

    ``replay_MODE_twins.parquet`` has the columns of ``steps_table`` after ``intervention``.
    ``replay_MODE_recovery.csv`` has a row for each intervention and definition: over how many
    answers it ``acted``, in how many it ``never_fired``, and ``rise`` and ``rise_with_copied`` as
    in ``Recovery.table``.

    Parameters
    ----------
    twins
        What was replayed.
    interventions
        What was done, and when.
    output
        Where results go, and the definition that is printed.

    Returns
    -------
    int
        Of how many answers no twin is missing.
    """
    root = located(output.save_folder)
    complete = 0
    for mode, count in Counter(run.settings.mode for run in twins.untouched).items():
        path = root / f"replay_{mode}_twins.parquet"
        clear_leftover_files(path)
        clear_leftover_folders([path])
        found = {name: _Rises() for name in twins.acting}
        write_parts(path, _tables(twins, mode, count, found), count)
        table = pd.DataFrame([row for name, one in found.items() for row in _rows(name, one)])
        with write_file(root / f"replay_{mode}_recovery.csv") as temporary:
            table.to_csv(temporary, index=False)
        for row in table[table["definition"] == output.definition].to_dict("records"):
            print(one_line(_line(row, interventions.when)))
        print(one_line(f"written to {path}"))
    for _, entries in twins.together():
        complete += len(entries) == len(twins.acting)
    return complete


def _tables(
    twins: Twins, mode: str, count: int, found: Mapping[str, _Rises]
) -> Iterator[pd.DataFrame]:
    """Give the steps of each answer of a mode and its twins, and count what the twins show."""
    of_mode = ((run, twin) for run, twin in twins.together() if run.settings.mode == mode)
    for run, entries in progress(of_mode, total=count, description="twins"):
        untouched = read_trace(run.entry)
        tables = {UNTOUCHED: steps_table(untouched, run.question)}
        for name, entry in entries.items():
            twin = read_trace(entry)
            found[name].add(untouched, twin)
            tables[name] = steps_table(twin, run.question)
        for name, table in tables.items():
            table.insert(0, "intervention", pd.Series([name] * len(table), dtype="string"))
        yield pd.concat(tables.values(), ignore_index=True)


def _rows(name: str, found: _Rises) -> Iterator[dict[str, Any]]:
    """One row for each definition."""
    shape = (found.acted, len(COUNTED), len(DEFINITIONS))
    rises = np.array(found.rises).reshape(shape)
    for place, definition in enumerate(DEFINITIONS):
        row = {
            "intervention": name,
            "definition": definition,
            "acted": found.acted,
            "never_fired": found.never,
        }
        for values, column in zip(rises[:, :, place].T, COUNTED, strict=True):
            known = values[np.isfinite(values)]
            row[column] = known.mean() if len(known) else np.nan
            row[f"{column}_low"], row[f"{column}_high"] = mean_interval(known, 0.95)
        yield row


def _line(row: Mapping[Any, Any], when: str) -> str:
    """Say what an intervention brings back."""
    answers = counted(row["acted"] + row["never_fired"], "answer")
    text = f"{row['intervention']}: acted in {row['acted']} of {answers}"
    if row["never_fired"]:
        text += f" (the trigger {when!r} never fires in {row['never_fired']})"
    for name, words in zip(COUNTED, (f"{row['definition']} rises by", "with copied"), strict=True):
        if np.isfinite(row[name]):
            text += f", {words} {row[name]:+.3f}"
            if np.isfinite(row[f"{name}_low"]):
                text += f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return text
