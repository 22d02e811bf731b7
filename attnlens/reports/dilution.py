"""What ``attnlens dilution`` writes: the check of the theorem over saved traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnlens
from attnlens.errors import InputError
from attnlens.files import check_results, write_folder
from attnlens.measures.inputs import find_region
from attnlens.progress import progress
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.recording.trace import Trace


def run_report(
    traces: str | Path,
    *,
    between: Any,
    layers: list[int] | None,
    include_copied: bool,
    save_folder: str | Path,
    formats: tuple[str, ...],
) -> Path:
    """Measure the traces of a folder, print what was found, and write a folder whole or not at all.

    Parameters
    ----------
    traces
        Folder that holds traces (``*.zarr``) at any depth.
    between, layers, include_copied
        As in ``attnlens.measures.dilution``.
    save_folder
        The results go into its folder ``dilution``.
    formats
        Of the figure.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If there is no trace, one cannot be read, or they cannot be measured together. A trace
        without one of the regions, or of fewer than three steps, is reported and left out.
    """
    from attnlens import measures, plots

    root = Path(traces)
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is no folder: give one that holds traces (*.zarr)")
    paths = sorted(p for p in root.rglob("*.zarr") if p.is_dir())
    if root.suffix == ".zarr":
        paths = [root]
    if not paths:
        raise InputError(
            f"{str(root)!r} holds no trace (*.zarr): make some with attnlens trend or Trace.save"
        )
    folder = Path(save_folder) / "dilution"
    check_results(folder, "dilution.json", "dilution")
    used: list[Path] = []
    models: set[str] = set()
    names = [window for window in between if isinstance(window, str)]
    loaded = _load(paths, names, used, models)
    try:
        found = measures.dilution(
            loaded, between=between, layers=layers, include_copied=include_copied
        )
    except InputError as error:
        raise InputError(f"{used[-1]}: {error}" if used else str(error)) from error
    record = {
        **found.as_dict(),
        "traces": [str(path.relative_to(root)) for path in used],
        "models": sorted(models),
        "versions": {"attnlens": attnlens.__version__},
    }
    figure = plots.dilution(found)
    with write_folder(folder, replace=True) as temporary:
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (temporary / "dilution.json").write_text(text + "\n", encoding="utf-8")
        found.by_head.to_csv(temporary / "by_head.csv", index=False)
        found.curves.to_csv(temporary / "curves.csv", index=False)
        for suffix in formats:
            plots.save(figure, temporary / f"dilution.{suffix}")
    for sentence in found.verdict():
        print(one_line(sentence))
    print(one_line(f"written to {folder}"))
    return folder


def _load(
    paths: list[Path], names: list[str], used: list[Path], models: set[str]
) -> Iterator[Trace]:
    """Load one trace after the other; what lacks a region, or is too short, is said and skipped."""
    last: InputError | None = None
    for path in progress(paths, description="traces"):
        trace = attnlens.Trace.load(path)
        try:
            for name in names:
                find_region(trace, name)
            if trace.data.sizes["step"] < 3:
                raise InputError("it has fewer than three steps")
        except InputError as error:
            last = error
            print(one_line(f"attnlens dilution: skipped {path}: {error}"), file=sys.stderr)
            continue
        used.append(path)
        models.add(str(trace.attrs.get("model", "")))
        yield trace
    if not used and last is not None:
        raise InputError(f"no trace can be used; {paths[-1]}: {last}")
