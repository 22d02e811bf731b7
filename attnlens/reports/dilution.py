"""What ``attnlens dilution`` writes: the check of the theorems over traces."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attnlens
from attnlens.errors import InputError
from attnlens.files import check_results, clear_leftover_folders, write_folder
from attnlens.measures.inputs import find_region
from attnlens.measures.theorems.log_odds import WHOLE_RUN
from attnlens.progress import progress
from attnlens.runs.cache import Entry
from attnlens.runs.dataset import Question
from attnlens.runs.recordings import TRACE, find_runs
from attnlens.stores import located, reaching
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.measures import Information, Insertion
    from attnlens.recording.trace import Trace
    from attnlens.runs.dilution import DilutionRuns

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class DilutionOutput:
    """How traces are measured, and where results are written."""

    between: Any = WHOLE_RUN
    layers: list[int] | None = None
    include_copied: bool = False
    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return located(self.save_folder) / "dilution"

    def check(self) -> None:
        """Refuse a folder that cannot be written, or holds something else."""
        check_results(self.folder, "dilution.json", "dilution")


def report_traces(traces: str | Path, output: DilutionOutput) -> None:
    """Measure the traces of a folder, print what was found, and write a folder whole or not at all.

    Parameters
    ----------
    traces
        Folder that holds traces (``*.zarr``) at any depth.
    output
        How they are measured, and where results are written.

    Raises
    ------
    InputError
        If there is no trace, one cannot be read, or they cannot be measured together. A trace
        without one of the regions, of fewer than three steps, or made under an intervention is
        reported and left out; forced twins are ignored.
    """
    root = located(traces)
    with reaching(root):
        is_folder = root.is_dir()
    if not is_folder:
        raise InputError(f"{str(root)!r} is no folder: give one that holds traces (*.zarr)")
    paths = [root] if root.suffix == ".zarr" else find_runs(root)
    if not paths:
        raise InputError(
            f"{str(root)!r} holds no trace (*.zarr): make some with attnlens trend or Trace.save"
        )
    output.check()
    _report({path: None for path in paths}, root, output)


def report_runs(runs: DilutionRuns, root: Path, output: DilutionOutput) -> None:
    """Measure the runs of the questions of a file; as ``report_traces``.

    Parameters
    ----------
    runs
        From ``attnlens.runs.dilution.run_questions``.
    root
        Their folder.
    output
        How they are measured, and where results are written.
    """
    traces = {entry.folder / TRACE: (one, entry) for one, entry in runs.recorded.items()}
    _report(traces, root, output, runs)


def _report(
    paths: Mapping[Path, tuple[Question, Entry] | None],
    root: Path,
    output: DilutionOutput,
    runs: DilutionRuns | None = None,
) -> None:
    from attnlens import measures, plots
    from attnlens.reports.dilution_tables import as_text, tidy
    from attnlens.reports.table import print_cut_off, steps_table, write_parquet

    used: list[Path] = []
    models: set[str] = set()
    cut_off: dict[Path, int] = {}
    names = [window for window in output.between if isinstance(window, str)]
    loaded = _load(paths, names, used, models, cut_off)
    try:
        found = measures.dilution(
            loaded,
            between=output.between,
            layers=output.layers,
            include_copied=output.include_copied,
        )
    except InputError as error:
        named = any(str(path) in str(error) for path in paths)
        raise InputError(f"{used[-1]}: {error}" if used and not named else str(error)) from error
    inserted, shared = _further(runs, output.layers)
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
    folder = output.folder
    clear_leftover_folders([folder])
    with write_folder(folder, replace=True) as temporary:
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (temporary / "dilution.json").write_text(text + "\n", encoding="utf-8")
        found.by_layer.to_csv(temporary / "by_layer.csv", index=False)
        found.by_head.to_csv(temporary / "by_head.csv", index=False)
        found.curves.to_csv(temporary / "curves.csv", index=False)
        write_parquet(temporary / "dilution.parquet", [tidy(found, inserted, shared)])
        steps = (
            steps_table(attnlens.Trace.load(path), source[0] if (source := paths[path]) else None)
            for path in used
        )
        write_parquet(temporary / "steps.parquet", steps)
        for name, figure in figures.items():
            for suffix in output.formats:
                plots.save(figure, temporary / f"{name}.{suffix}")
    print(f"{as_text(found, inserted, shared)}\n")
    verdict = found.verdict()
    verdict += [] if inserted is None else inserted.verdict()
    verdict += [] if shared is None else shared.verdict()
    for sentence in verdict:
        print(one_line(sentence))
    print_cut_off("dilution", Counter(cut_off.values()), len(used))
    print(one_line(f"written to {folder}"))


def _further(
    runs: DilutionRuns | None, layers: list[int] | None
) -> tuple[Insertion | None, Information | None]:
    """Measure what needs a model: insertions and sampled answers, if they were run."""
    from attnlens import measures

    if runs is None:
        return None, None
    from attnlens.experiments.dependence import load_dependence

    inserted = shared = None
    if runs.twins:
        groups = (
            _read(entry, entry.settings["insertions"], attnlens.Trace.load)
            for entry in progress(runs.twins.values(), description="insertions")
        )
        inserted = measures.insertion(groups, layers=layers)
    if runs.answers:
        numbers = [str(i) for i in range(runs.samples)]
        shared = measures.mutual_information(
            [
                list(_read(entry, numbers, load_dependence).values())
                for entry in runs.answers.values()
            ]
        )
    return inserted, shared


def _read(entry: Entry, names: Iterable[str], reader: Callable[[Path], _Read]) -> dict[str, _Read]:
    """Read the results ``NAME.zarr`` of an entry."""
    with entry.reading() as folder:
        return {name: reader(folder / f"{name}.zarr") for name in names}


def _load(
    paths: Mapping[Path, tuple[Question, Entry] | None],
    names: list[str],
    used: list[Path],
    models: set[str],
    cut_off: dict[Path, int],
) -> Iterator[Trace]:
    """Load one trace after the other; those that cannot be measured are reported and skipped."""
    last: InputError | None = None
    for path, source in progress(paths.items(), total=len(paths), description="traces"):
        with nullcontext() if source is None else source[1].reading():
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
