"""What ``attnlens dilution`` writes: the check of the theorem over saved traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attnlens
from attnlens.errors import InputError
from attnlens.files import check_writable, write_folder
from attnlens.progress import progress
from attnlens.text import one_line


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
        If there is no trace, one cannot be read, or they cannot be measured together.
    """
    from attnlens import measures, plots

    root = Path(traces)
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is no folder: give one that holds traces (*.zarr)")
    paths = sorted(p for p in root.rglob("*.zarr") if p.is_dir())
    if not paths:
        raise InputError(
            f"{str(root)!r} holds no trace (*.zarr): make some with attnlens trend or Trace.save"
        )
    folder = Path(save_folder) / "dilution"
    if folder.exists() and not (folder / "dilution.json").is_file():
        raise InputError(f"{str(folder)!r} holds something else than dilution: move it away")
    check_writable(folder)
    runs = [attnlens.Trace.load(path) for path in progress(paths, description="traces")]
    found = measures.dilution(runs, between=between, layers=layers, include_copied=include_copied)
    record = {
        **found.as_dict(),
        "traces": [str(path.relative_to(root)) for path in paths],
        "models": sorted({str(run.attrs.get("model", "")) for run in runs}),
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
