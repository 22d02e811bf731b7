"""``attnlens explore``: pages that show where each word looked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.text import counted, one_line, quoted


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "explore",
        help="write pages that show where each word looked",
        description="Write one page of a trace (a folder NAME.zarr), or a list with a page for "
        "each of the traces in a folder. Pages open in any browser, offline. Options are spelled "
        "with _ or -.",
    )
    parser.add_argument("runs", metavar="RUNS", help="a trace, or a folder of results")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="the page (NAME.html beside the trace), or the folder of pages (RUNS_explorer)",
    )
    parser.add_argument(
        "--twin",
        metavar="NAME=TRACE",
        action="append",
        default=[],
        help="for one trace: another run of the same prompt that stands beside it; repeatable",
    )
    parser.add_argument(
        "--image_path",
        metavar="FILE",
        action="append",
        help="for one trace: its picture, where the file has moved; repeatable",
    )
    parser.add_argument("--expected", metavar="TEXT", help="the true answer")
    parser.add_argument(
        "--definition",
        default="look-back",
        help="for a folder: definition of attention of the curves in the list (look-back)",
    )
    parser.add_argument("--replace", action="store_true", help="write over a page that is there")
    parser.set_defaults(run=run_explore)


def run_explore(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then read, measure and write."""
    from attnlens.measures.definitions import get_definition

    get_definition(options.definition)
    runs = Path(options.runs)
    if not runs.is_dir():
        raise InputError(
            f"{quoted(runs)} is no folder: give a trace (NAME.zarr) or a folder of them"
        )
    twins = dict(map(_named, options.twin))
    if runs.suffix == ".zarr":
        return _one(runs, twins, options)
    for flag, value in (("--twin", options.twin), ("--image_path", options.image_path)):
        if value:
            raise InputError(f"{flag} {value[0]}: it is for one trace, and {quoted(runs)} is none")
    from attnlens.explorer.index import write_index

    folder = Path(options.out or f"{runs.resolve()}_explorer")
    written, left_out = write_index(
        runs, folder, definition=options.definition, expected=options.expected
    )
    print(one_line(f"{counted(written, 'page')}, written to {folder / 'index.html'}"))
    if left_out:
        print(f"attnlens explore: {counted(left_out, 'run')} left out (see above)", file=sys.stderr)
    return 1 if left_out else 0


def _one(runs: Path, twins: dict[str, Path], options: argparse.Namespace) -> int:
    from attnlens.explorer.index import known_of
    from attnlens.explorer.page import runs_to_show, write_page
    from attnlens.files import check_file
    from attnlens.recording.trace import Trace

    path = Path(options.out) if options.out else runs.with_suffix(".html")
    check_file(path)
    if path.exists() and not options.replace:
        raise InputError(f"{quoted(path)} exists already: give another --out, or --replace")
    trace = Trace.load(runs)
    known = known_of(runs)
    if twins:
        known["twins"] = {name: Trace.load(twin) for name, twin in twins.items()}
    if options.expected is not None:
        known["expected"] = options.expected
    shown = runs_to_show(trace, images=options.image_path, **known)
    print(one_line(f"written to {write_page(path, shown, replace=options.replace)}"))
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise InputError(f"--twin {text}: give a name and a trace, as in --twin copy=copy.zarr")
    return name, Path(path)
