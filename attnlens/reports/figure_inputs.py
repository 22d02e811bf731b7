"""What ``attnlens figures`` draws from: a folder of runs, checked and read.

The layout is described in ``attnlens.testbed.studies.figure_runs``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnlens
from attnlens.errors import InputError
from attnlens.measures.inputs import regions_of
from attnlens.models.modes import MODE_NAMES
from attnlens.progress import progress
from attnlens.recording.store import stored_in, with_either_ending
from attnlens.reports.table import print_cut_off
from attnlens.runs.recordings import ANSWERS, LONG, TWINS, find_runs, is_run
from attnlens.text import one_line

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.experiments.recovery import Recovery
    from attnlens.recording.trace import Trace

VERIFICATIONS = ("back", "reflection")
"""Modes with a verification, and the names of its region."""


@dataclass(frozen=True)
class Recorded:
    """One run.

    Attributes
    ----------
    path
        Its folder.
    trace
        The trace, without its visual map: that of a large model is large.
    has_map
        Whether the one in the folder has one.
    """

    path: Path
    trace: Trace
    has_map: bool

    def truth(self) -> dict[str, Any] | None:
        """Return the truth of the answer (``Sample.truth(tokens)``), if its file is there.

        Raises
        ------
        InputError
            If the file is no JSON.
        """
        path = self.path.with_suffix(".json")
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} cannot be read as the truth of a run: {error}"
            ) from error
        return found if isinstance(found, dict) and "tokens" in found else None


@dataclass
class FigureRuns:
    """A folder of runs.

    Attributes
    ----------
    modes
        Untouched runs by the mode that they note, in order of their paths.
    dependence
        Results of ``attnlens.dependence``.
    long
        Traces of long answers.
    twins
        For each prompt, paths of forced traces by name, the one with nothing inserted first.
    answers
        For each prompt, results of ``attnlens.dependence`` of sampled answers.
    recovery, routes
        Results of ``attnlens.recover``, where they are there.
    models
        Names of the models.
    """

    modes: dict[str, list[Recorded]] = field(default_factory=dict)
    dependence: list[xr.Dataset] = field(default_factory=list)
    long: list[Trace] = field(default_factory=list)
    twins: list[dict[str, Path]] = field(default_factory=list)
    answers: list[list[xr.Dataset]] = field(default_factory=list)
    recovery: Recovery | None = None
    routes: Recovery | None = None
    models: set[str] = field(default_factory=set)

    def traces(self, mode: str) -> list[Trace]:
        """Return the traces of a mode."""
        return [one.trace for one in self.modes.get(mode, [])]

    def verified(self) -> tuple[str, list[Recorded]]:
        """Return the region in which answers verify, and the runs that have it.

        Raises
        ------
        InputError
            If there is none.
        """
        for name in VERIFICATIONS:
            found = [
                one
                for listed in self.modes.values()
                for one in listed
                if any(region.name == name for region in regions_of(one.trace))
            ]
            if found:
                return name, found
        raise InputError("no run has a verification (a region <back> or <REFLECTION>)")

    def preferred(self, *names: str) -> str:
        """Return the first of some modes that there are runs of, or else any.

        Raises
        ------
        InputError
            If there is no run.
        """
        if not self.modes:
            raise InputError("there is no trace (*.zarr)")
        return next((name for name in names if name in self.modes), next(iter(self.modes)))


def read_runs(folder: str | Path) -> FigureRuns:
    """Read a folder of runs.

    Parameters
    ----------
    folder
        Traces (``*.zarr``) at any depth, ``dependence/*.zarr``, ``recovery.zarr`` (or the one in a
        folder ``*_recovery``) and ``routes.zarr``, each where there is one; the last three may also
        end in ``.nc``, as earlier versions wrote them. What cannot be averaged with the rest (a run
        under an intervention, one without an image or with fewer than three steps) is left out,
        which is reported on standard error.

    Raises
    ------
    InputError
        If there is no such folder, it holds none of these, one of them cannot be read, or they come
        from several models.
    """
    from attnlens.experiments.dependence import load_dependence

    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is no folder: give one that holds traces (*.zarr)")
    runs = FigureRuns()
    for path in progress(find_runs(root), description="reading runs"):
        _add_trace(runs, path, root)
    traces = [one.trace for listed in runs.modes.values() for one in listed]
    cut_off = Counter(trace.data.sizes["step"] for trace in traces if trace.cut_off)
    print_cut_off("figures", cut_off, len(traces))
    long = [path for path in sorted((root / LONG).glob("*.zarr")) if not is_run(path.name)]
    runs.long = [attnlens.Trace.load(path) for path in long]
    runs.models |= {str(trace.attrs.get("model", "")) for trace in runs.long}
    for folder in _folders(root, TWINS):
        found = {path.stem: path for path in sorted(folder.glob("*.zarr"))}
        if "nothing" not in found:
            raise InputError(f"{str(folder)!r} holds no nothing.zarr: give the untouched twin, too")
        runs.twins.append({"nothing": found.pop("nothing"), **found})
        runs.models.add(str(attnlens.Trace.load(folder / "nothing.zarr").attrs.get("model", "")))
    runs.answers = [
        [load_dependence(path) for path in stored_in(folder)] for folder in _folders(root, ANSWERS)
    ]
    runs.dependence = [load_dependence(path) for path in stored_in(root / "dependence")]
    path = _recovery_file(root)
    if path is not None:
        runs.recovery = _read_recovery(path)
    path = with_either_ending(root / "routes.zarr")
    if path.exists():
        runs.routes = _read_recovery(path)
    compared = [one.data for one in (runs.recovery, runs.routes) if one is not None]
    datasets = [*compared, *runs.dependence, *(one for group in runs.answers for one in group)]
    runs.models |= {str(one.attrs["model"]) for one in datasets if "model" in one.attrs}
    if not runs.modes and not datasets and not runs.long and not runs.twins:
        raise InputError(
            f"{str(root)!r} holds no untouched run (*.zarr), dependence/*.zarr, recovery.zarr "
            "or routes.zarr: make some with Trace.save and Recovery.save, or leave --traces out"
        )
    if len(runs.models) > 1:
        raise InputError(
            f"{str(root)!r} holds runs of several models ({', '.join(sorted(runs.models))}): give "
            "a folder for each"
        )
    return runs


def _folders(root: Path, ending: str) -> list[Path]:
    """List the folders of single prompts inside ``MODE<ending>``, in order."""
    found = (path for mode in MODE_NAMES for path in root.glob(f"**/{mode}{ending}/*"))
    return sorted(
        p for p in found if p.is_dir() and p.suffix != ".zarr" and not p.name.startswith(".")
    )


def _add_trace(runs: FigureRuns, path: Path, root: Path) -> None:
    trace = attnlens.Trace.load(path)
    reason = ""
    if trace.attrs.get("interventions"):
        reason = "it was made under an intervention"
    elif not (trace.data["keys"].sel(segment="visual") > 0).any():
        reason = "it has no visual keys"
    elif trace.data.sizes["step"] < 3:
        reason = "it has fewer than three steps"
    if reason:
        name = one_line(str(path.relative_to(root)))
        print(f"attnlens figures: run {name} left out: {reason}", file=sys.stderr)
        return
    has_map = "visual_map" in trace.data
    if has_map:
        trace = attnlens.Trace(trace.data.drop_dims("visual"))
    runs.models.add(str(trace.attrs.get("model", "")))
    mode = str(trace.attrs.get("mode") or "no mode")
    runs.modes.setdefault(mode, []).append(Recorded(path, trace, has_map))


def _recovery_file(root: Path) -> Path | None:
    """Find the recovery to draw: that of the folder itself, or the one of attnlens recover."""
    own = with_either_ending(root / "recovery.zarr")
    if own.exists():
        return own
    folders = sorted(root.glob("*_recovery"))
    found = [with_either_ending(folder / "recovery.zarr") for folder in folders]
    found = [path for path in found if path.exists()]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        print(
            one_line(
                f"attnlens figures: no recovery is drawn, since there are several ({names}): copy "
                f"one of them to {root / found[0].name}"
            ),
            file=sys.stderr,
        )
        return None
    return found[0] if found else None


def _read_recovery(path: Path) -> Recovery:
    from attnlens.experiments.recovery import Recovery

    return Recovery.load(path)
