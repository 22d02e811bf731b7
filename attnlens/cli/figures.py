"""``attnlens figures``: every figure of a paper about the decay of visual attention."""

from __future__ import annotations

import argparse
from typing import Any

from attnlens.cli.arguments import at_least
from attnlens.errors import InputError
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
        "data for are left out, and said so; their files of an earlier call are removed. Options "
        "are spelled with _ or -.",
    )
    parser.add_argument("--out", default="figures", metavar="DIR", help="(figures)")
    parser.add_argument(
        "--traces",
        metavar="DIR",
        help="folder of runs of your own model: traces (*.zarr, untouched, at any depth) and, "
        "where you have them, dependence/*.nc, recovery.nc and routes.nc; see "
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
    from attnlens.reports import figures

    drawn = figures.run_figures(
        options.out,
        traces=options.traces,
        scenes=scenes,
        seed=options.seed or 0,
        width=options.width,
        keep_runs=options.keep_runs,
    )
    print(one_line(f"{len(drawn)} figures written to {options.out}: {', '.join(drawn)}"))
    return 0
