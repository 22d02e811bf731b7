"""What ``attnlens dilution`` writes: the check of the theorem over saved traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attnlens
from attnlens.errors import InputError
from attnlens.files import check_results, write_folder
from attnlens.measures.inputs import find_region
from attnlens.measures.theorems.change import WHOLE_RUN
from attnlens.progress import progress
from attnlens.reports.jobs import Job
from attnlens.reports.many import find_runs, remove_leftovers
from attnlens.reports.notes import NOTE, made_again
from attnlens.reports.trend_files import note_of_trace
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.measures import Information, Insertion
    from attnlens.recording.trace import Trace
    from attnlens.reports.asking import TrendSettings
    from attnlens.reports.dilution_runs import Runs

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class DilutionSettings:
    """How traces are measured and what is written; options of ``attnlens dilution``."""

    between: Any = WHOLE_RUN
    layers: list[int] | None = None
    include_copied: bool = False
    insertion: bool = False
    samples: int = 0
    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.save_folder) / "dilution"


def report_traces(traces: str | Path, settings: DilutionSettings) -> Path:
    """Measure the traces of a folder, print what was found, and write a folder whole or not at all.

    Parameters
    ----------
    traces
        Folder that holds traces (``*.zarr``) at any depth.
    settings
        How.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If there is no trace, one cannot be read, or they cannot be measured together. A trace
        without one of the regions, of fewer than three steps, or made under an intervention is
        reported and left out; forced twins and what a killed process left are not looked at.
    """
    root = Path(traces)
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is no folder: give one that holds traces (*.zarr)")
    paths = [root] if root.suffix == ".zarr" else find_runs(root)
    if not paths:
        raise InputError(
            f"{str(root)!r} holds no trace (*.zarr): make some with attnlens trend or Trace.save"
        )
    check_results(settings.folder, "dilution.json", "dilution")
    return _report({path: None for path in paths}, root, settings)


def report_questions(jobs: list[Job], asked: TrendSettings, settings: DilutionSettings) -> int:
    """Ask the questions of a file, each kept when it is done, and report on all of them.

    Parameters
    ----------
    jobs
        The questions.
    asked
        How they are asked; runs go into the folder ``dilution_runs``.
    settings
        How they are measured.

    Returns
    -------
    int
        How many questions could not be run, or not in all that was asked for.

    Raises
    ------
    InputError
        If no question could be run, and as in ``report_traces``.
    """
    from attnlens.reports.dilution_runs import run_questions

    check_results(settings.folder, "dilution.json", "dilution")
    remove_leftovers(settings.folder)
    root = Path(settings.save_folder) / "dilution_runs"
    vlm = asked.load()
    runs = run_questions(
        vlm,
        jobs,
        replace(asked, save_folder=str(root)),
        insertion=settings.insertion,
        samples=settings.samples,
    )
    _report(dict(zip(runs.traces, runs.jobs, strict=True)), root, settings, runs)
    return len(jobs) - len(runs.whole)


def _report(
    paths: Mapping[Path, Job | None],
    root: Path,
    settings: DilutionSettings,
    runs: Runs | None = None,
) -> Path:
    from attnlens import measures, plots
    from attnlens.reports.dilution_table import tidy
    from attnlens.reports.dilution_text import as_text
    from attnlens.reports.table import say_cut_off, steps_table, write_parquet

    used: list[Path] = []
    models: set[str] = set()
    cut_off: dict[Path, int] = {}
    names = [window for window in settings.between if isinstance(window, str)]
    loaded = _load(paths, names, used, models, cut_off)
    try:
        found = measures.dilution(
            loaded,
            between=settings.between,
            layers=settings.layers,
            include_copied=settings.include_copied,
        )
    except InputError as error:
        named = any(str(path) in str(error) for path in paths)
        raise InputError(f"{used[-1]}: {error}" if used and not named else str(error)) from error
    inserted, shared = _further(runs, settings)
    record: dict[str, Any] = {
        **found.as_dict(),
        "insertion": None if inserted is None else inserted.as_dict(),
        "information": None if shared is None else shared.as_dict(),
        "traces": [str(path.relative_to(root)) for path in used],
        "cut_off": [str(path.relative_to(root)) for path in cut_off],
        "models": sorted(models),
        "versions": {"attnlens": attnlens.__version__},
    }
    figures = {"dilution": plots.dilution(found)}
    if inserted is not None:
        figures["insertion"] = plots.insertion(inserted)
    if shared is not None:
        figures["information"] = plots.information(shared)
    folder = settings.folder
    with write_folder(folder, replace=True) as temporary:
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (temporary / "dilution.json").write_text(text + "\n", encoding="utf-8")
        found.by_layer.to_csv(temporary / "by_layer.csv", index=False)
        found.by_head.to_csv(temporary / "by_head.csv", index=False)
        found.curves.to_csv(temporary / "curves.csv", index=False)
        write_parquet(temporary / "dilution.parquet", [tidy(found, inserted, shared)])
        steps = (steps_table(attnlens.Trace.load(path), paths[path]) for path in used)
        write_parquet(temporary / "steps.parquet", steps)
        for name, figure in figures.items():
            for suffix in settings.formats:
                plots.save(figure, temporary / f"{name}.{suffix}")
    print(f"{as_text(found, inserted, shared)}\n")
    said = found.verdict()
    said += [] if inserted is None else inserted.verdict()
    said += [] if shared is None else shared.verdict()
    for sentence in said:
        print(one_line(sentence))
    say_cut_off("dilution", list(cut_off.values()), len(used))
    print(one_line(f"written to {folder}"))
    return folder


def _further(
    runs: Runs | None, settings: DilutionSettings
) -> tuple[Insertion | None, Information | None]:
    """Measure what only a model at hand can give, where it was asked for."""
    from attnlens import measures

    if runs is None:
        return None, None
    from attnlens.reports.figure_inputs import read_dependence

    inserted = shared = None
    if runs.twins:
        groups = (
            {name: _read(path, attnlens.Trace.load) for name, path in twins.items()}
            for twins in progress(runs.twins, description="insertions")
        )
        inserted = measures.insertion(groups, layers=settings.layers)
    if runs.answers:
        shared = measures.mutual_information(
            [[_read(path, read_dependence) for path in paths] for paths in runs.answers]
        )
    return inserted, shared


def _read(path: Path, reader: Callable[[Path], _Read]) -> _Read:
    with made_again(path.with_name(NOTE)):
        return reader(path)


def _load(
    paths: Mapping[Path, Job | None],
    names: list[str],
    used: list[Path],
    models: set[str],
    cut_off: dict[Path, int],
) -> Iterator[Trace]:
    """Load one trace after the other; what lacks a region, or is too short, is said and skipped."""
    last: InputError | None = None
    for path, job in progress(paths.items(), total=len(paths), description="traces"):
        with nullcontext() if job is None else made_again(note_of_trace(path)):
            trace = attnlens.Trace.load(path)
        try:
            for name in names:
                find_region(trace, name)
            if trace.attrs.get("interventions"):
                raise InputError("it was made under an intervention")
            if trace.data.sizes["step"] < 3:
                raise InputError("it has fewer than three steps")
        except InputError as error:
            last = error
            print(one_line(f"attnlens dilution: skipped {path}: {error}"), file=sys.stderr)
            continue
        used.append(path)
        models.add(str(trace.attrs.get("model", "")))
        if trace.cut_off:
            cut_off[path] = trace.data.sizes["step"]
        yield trace
    if not used and last is not None:
        raise InputError(f"no trace can be used; {path}: {last}")
