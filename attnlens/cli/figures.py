"""``attnlens figures``: every figure of a paper about the decay of visual attention."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attnlens.cli.arguments import at_least
from attnlens.errors import InputError
from attnlens.files import check_writable
from attnlens.text import one_line

SCENES = 40


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "figures",
        help="draw all figures, from runs of the testbed or of your own model",
        description="Draw every figure as PDF and PNG into OUT, each with its caption (NAME.txt) "
        "and its data (NAME.csv, with more in NAME_*.csv). Without --traces, the model that ships "
        "with the package is run on held-out scenes first. Figures that a folder of traces has no "
        "data for are left out with a message, and their files of an earlier call are removed. "
        "Options are spelled with _ or -.",
    )
    parser.add_argument("--out", default="figures", metavar="DIR", help="(figures)")
    parser.add_argument(
        "--traces",
        metavar="DIR",
        help="folder of runs of your own model: traces (*.zarr, untouched, at any depth) and, "
        "where you have them, dependence/*.zarr, recovery.zarr and routes.zarr; see "
        "attnlens.testbed.studies.figure_runs",
    )
    parser.add_argument(
        "--scenes", type=int, metavar="N", help=f"held-out scenes to run, at least 2 ({SCENES})"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="which scenes (0)")
    parser.add_argument(
        "--width",
        default="two-column",
        choices=("one-column", "two-column"),
        help="width of the figures, 3.35 or 6.9 inches (two-column)",
    )
    parser.add_argument(
        "--keep_runs", metavar="DIR", help="new folder to keep the runs in, for --traces"
    )
    parser.set_defaults(run=run_figures)


def run_figures(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then run, draw and write."""
    if options.traces is not None:
        for name in ("scenes", "seed", "keep_runs"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} with --traces: nothing is run then; leave one out")
    scenes = SCENES if options.scenes is None else options.scenes
    at_least("scenes", scenes, 2)
    from attnlens.reports.figures import draw_figures

    folder = Path(options.out)
    check_writable(folder)
    with ExitStack() as stack:
        if options.traces is not None:
            place = Path(options.traces)
        else:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            place = Path(options.keep_runs or Path(temporary) / "runs")
            _make_runs(place, scenes, options.seed or 0)
        from attnlens.reports.figure_inputs import read_runs

        drawn = draw_figures(read_runs(place), folder, options.width)
    print(one_line(f"{len(drawn)} figures written to {folder}: {', '.join(drawn)}"))
    return 0


def _make_runs(place: Path, scenes: int, seed: int) -> None:
    """Run the testbed on held-out scenes, in a new folder."""
    import attnlens
    from attnlens.testbed.studies.figure_runs import check_scenes, make_runs

    check_scenes(scenes, seed)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"--keep_runs {str(place)!r} exists already: give a new folder")
    check_writable(place)
    make_runs(attnlens.load("testbed"), place, scenes, seed)
