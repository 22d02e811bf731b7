"""What ``attnlens figures`` writes: every figure of a folder of runs, with captions and data."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attnlens
from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.progress import progress
from attnlens.reports.figure_inputs import FigureRuns
from attnlens.text import one_line

if TYPE_CHECKING:
    from attnlens.reports.figure_list import Drawn

FORMATS = ("pdf", "png")
DIGITS = 6
"""Digits of the numbers in the data: fewer than those that rounding reaches."""


def draw_figures(runs: FigureRuns, folder: Path, width: str) -> list[str]:
    """Draw what can be drawn, report what is left out, and write the files.

    Parameters
    ----------
    runs
        From ``read_runs``.
    folder
        Folder of the figures: for each, ``NAME.pdf``, ``NAME.png``, ``NAME.txt`` (the caption) and
        ``NAME.csv`` (the data, and more in ``NAME_*.csv``). Those of a figure that is left out this
        time are removed; nothing else in the folder is touched.
    width
        "one-column" or "two-column".

    Returns
    -------
    list of str
        Names of the figures.

    Raises
    ------
    InputError
        If nothing can be drawn.
    """
    from attnlens.reports.figure_list import FIGURES

    files: dict[str, bytes] = {}
    drawn: list[str] = []
    reasons: list[str] = []
    for name, draw in progress(FIGURES.items(), description="figures"):
        try:
            for one in draw(runs, width):
                files |= _files(one, runs)
                drawn.append(one.name)
        except InputError as error:
            reasons.append(one_line(f"{name} left out: {error}"))
    for reason in reasons:
        print(f"attnlens figures: {reason}", file=sys.stderr)
    if not drawn:
        raise InputError(f"nothing can be drawn; {reasons[0]}")
    for file, content in files.items():
        with write_file(folder / file) as temporary:
            temporary.write_bytes(content)
    for path in _stale(folder, files):
        path.unlink()
    return drawn


def _files(one: Drawn, runs: FigureRuns) -> dict[str, bytes]:
    """Contents of a figure's files by name."""
    from attnlens.plots.figure import render

    files = {f"{one.name}.{suffix}": render(one.figure, suffix) for suffix in FORMATS}
    files[f"{one.name}.txt"] = caption_file(one, runs).encode("utf-8")
    for suffix, table in one.tables.items():
        name = f"{one.name}_{suffix}.csv" if suffix else f"{one.name}.csv"
        numbers = table.select_dtypes("floating").map(lambda value: float(f"{value:.{DIGITS}g}"))
        # texts in quotes, as tokens hold any character, and a bare line feed ends a row
        text = table.assign(**numbers).to_csv(
            index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
        )
        files[name] = text.encode("utf-8")
    return files


def caption_file(one: Drawn, runs: FigureRuns) -> str:
    """Put together the text of a caption file: a figure's own caption, and what it was made of."""
    own = [text.get_text() for text in one.figure.texts if text.get_gid() == "caption"]
    models = ", ".join(_model(name) for name in sorted(runs.models)) or "not noted"
    made = f"made with {one.versions}" if one.versions else "made with versions that are not noted"
    parts = [
        one.title,
        " ".join([*" ".join(own).split(), *one.note.split()]),
        f"Model: {models}. Samples: {one.samples}, {made}. Drawn with attnlens "
        f"{attnlens.__version__}.",
    ]
    return "\n\n".join(one_line(part) for part in parts) + "\n"


def _model(name: str) -> str:
    """Name of a model without the place of its folder."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name


def _stale(folder: Path, files: dict[str, bytes]) -> Iterator[Path]:
    """Files of figures that an earlier call drew and this one did not."""
    from attnlens.reports.figure_list import NAMES

    for name in NAMES:
        for path in [
            *(folder / f"{name}.{s}" for s in (*FORMATS, "txt", "csv")),
            *folder.glob(f"{name}_*.csv"),
        ]:
            if path.name not in files and path.is_file():
                yield path
