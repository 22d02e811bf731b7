"""Many runs: a list that opens a page for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from attnlens._version import __version__
from attnlens.answers import final_answer, judge
from attnlens.errors import InputError
from attnlens.explorer.contents import LARGEST, VERSION
from attnlens.explorer.page import check_twin, page_html, runs_to_show, write_page
from attnlens.files import check_results, clear_leftover_folders, write_folder
from attnlens.measures.definitions import get_definition
from attnlens.measures.share import visual_share
from attnlens.progress import progress
from attnlens.recording.trace import Trace
from attnlens.runs.recordings import SUMMARY, TRACE, find_runs
from attnlens.runs.twins import NOTHING, twins_beside
from attnlens.text import one_line, quoted

INDEX, PAGES = "index.html", "pages"
POINTS = 64
"""Most points of a run's curve in the list."""


def write_index(
    runs: Path,
    folder: Path,
    *,
    definition: str = "look-back",
    expected: str | None = None,
    largest: int = LARGEST,
) -> tuple[int, int]:
    """Write a list of all runs in a folder, and a page for each.

    One run is read at a time. One that cannot be read, or shown, is named on standard error and
    left out.

    Parameters
    ----------
    runs
        The folder: traces at any depth of it.
    folder
        Where ``index.html`` and ``pages/`` go; written whole, in place of an earlier one.
    definition
        Definition of attention to the image of the curves in the list.
    expected
        The true answer of the runs whose results do not tell it.
    largest
        Most bytes of a page, about.

    Returns
    -------
    int, int
        How many runs were written, and how many left out.

    Raises
    ------
    InputError
        If there is no run, none can be shown, or the folder cannot be written or holds something
        else.
    """
    get_definition(definition)
    check_results(folder, INDEX, "pages of attnlens explore")
    paths = find_runs(runs)
    if not paths:
        raise InputError(f"{quoted(runs)} holds no traces: give a folder with runs in it")
    clear_leftover_folders([folder])
    rows: list[dict[str, Any]] = []
    with write_folder(folder, replace=True) as temporary:
        (temporary / PAGES).mkdir()
        for number, path in enumerate(progress(paths, total=len(paths), description="pages")):
            name = path.relative_to(runs).with_suffix("").as_posix()
            file = f"{number:05d}.html"
            try:
                trace, known = read_run(path)
                if expected is not None:
                    known.setdefault("expected", expected)
                shown = runs_to_show(trace, **known)
                row = _row(trace, known.get("expected"), definition)
                write_page(temporary / PAGES / file, shown, largest=largest)
            except InputError as error:
                print(one_line(f"attnlens explore: left out {name}: {error}"), file=sys.stderr)
                continue
            rows.append({"href": f"{PAGES}/{quote(file)}", "name": name, **row})
        if not rows:
            raise InputError(f"no run of {quoted(runs)} can be shown")
        text = page_html(index_contents(rows, runs.resolve().name))
        (temporary / INDEX).write_text(text, encoding="utf-8")
    return len(rows), len(paths) - len(rows)


def index_contents(rows: Sequence[dict[str, Any]], title: str) -> dict[str, Any]:
    """Return what the page of a list shows."""
    return {
        "version": VERSION,
        "kind": "index",
        "title": title,
        "made_by": f"attnlens {__version__}",
        "rows": list(rows),
    }


def _row(trace: Trace, expected: str | None, definition: str) -> dict[str, Any]:
    answer = final_answer(trace.text)
    share = visual_share(trace, definition).values
    quarter = max(len(share) // 4, 1)
    return {
        "mode": str(trace.attrs.get("mode") or ""),
        "question": str(trace.attrs.get("question") or ""),
        "answer": answer,
        "expected": expected,
        "right": None if expected is None else judge(answer, expected).right,
        "steps": int(trace.data.sizes["step"]),
        "curve": list(_curve(share)),
        "definition": definition,
        "start": _mean(share[:quarter]),
        "end": _mean(share[-quarter:]),
    }


def _curve(share: np.ndarray) -> Iterator[float | None]:
    """Means over equal parts."""
    for part in np.array_split(share, min(POINTS, len(share))) if len(share) else ():
        yield _mean(part)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def read_run(path: Path) -> tuple[Trace, dict[str, Any]]:
    """Read a trace, and what files beside it tell of its run.

    The true answer comes from the summary of ``attnlens trend`` or ``attnlens replay``; the truth
    of each token from the JSON of ``Sample.truth`` of the same name; twins from the folders of
    ``attnlens replay --intervention``. A twin that cannot be read, or is of another prompt, is
    named on standard error and left out.

    Parameters
    ----------
    path
        The trace.

    Returns
    -------
    Trace, dict
        What twins compare with: the run, or the same answer fed token by token, where twins are of
        half precision. What is known, as options of ``runs_to_show``.

    Raises
    ------
    InputError
        If the trace cannot be read.
    """
    trace = Trace.load(path)
    folder = path.parent
    mode, runs = folder.parent, folder.parent.parent
    command = runs.name.removesuffix("_runs")
    truth = _json(path.with_suffix(".json"))
    if "parts" not in truth or truth.get("question") != trace.attrs.get("question"):
        truth = {}  # no truth of a sample, or that of another question
    summary = _json(folder / SUMMARY)
    if command != runs.name:
        summary = _json(runs.parent / command / mode.name / folder.name / SUMMARY)
    elif path.name != f"{summary.get('mode')}_{TRACE}":
        summary = {}  # of another mode of the same picture
    expected = next((one["expected"] for one in (truth, summary) if one.get("expected")), None)
    known: dict[str, Any] = {} if expected is None else {"expected": str(expected)}
    if "tokens" in truth:
        known["truth"] = truth
    twins = {}
    for name, twin in twins_beside(path):
        try:
            found = Trace.load(twin)
            check_twin(name, found, trace)
        except InputError as error:
            print(one_line(f"attnlens explore: left out a twin: {error}"), file=sys.stderr)
            continue
        twins[name] = found
    trace = twins.pop(NOTHING, trace)
    return trace, {**known, "twins": twins} if twins else known


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
