"""``attnlens dilution``: how much of the decay of visual attention is mere key counts."""

from __future__ import annotations

import argparse
import re
from typing import Any

from attnlens.cli.trend import parse_layers
from attnlens.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "dilution",
        help="say how much of the decay of visual attention is growing key counts",
        description="Read saved traces (of attnlens trend, or Trace.save), check Theorem 3.1 of "
        "Qwen-LookAgain over them, split the change of visual attention between two windows into "
        "key counts and preference, and write into SAVE_FOLDER/dilution/ every number "
        "(dilution.json, by_head.csv, curves.csv) and a figure. Options are spelled with _ or -.",
    )
    parser.add_argument(
        "--traces", required=True, metavar="DIR", help="folder of traces, *.zarr at any depth"
    )
    parser.add_argument(
        "--between",
        nargs=2,
        default=["0%-25%", "75%-100%"],
        metavar=("BEFORE", "AFTER"),
        help="what is compared: names of regions (think back), steps (0-40) or parts of the run "
        "(0%%-25%% 75%%-100%%, the default)",
    )
    parser.add_argument(
        "--layers",
        metavar="LIST",
        help="layers to use, of those recorded, such as 0,2 or 4-7 (all)",
    )
    parser.add_argument(
        "--include_copied",
        action="store_true",
        help="count visual tokens that were inserted again as visual",
    )
    parser.add_argument("--save_folder", default="results", metavar="DIR", help="(results)")
    parser.add_argument("--format", nargs="+", default=["png"], choices=("png", "pdf", "svg"))
    parser.set_defaults(run=run_dilution)


def parse_window(text: str) -> Any:
    """Read ``back``, ``0-40`` or ``0%-25%`` into a window of steps.

    Raises
    ------
    InputError
        If a part of a run is not between 0% and 100%.
    """
    steps = re.fullmatch(r"(\d+)-(\d+)", text)
    if steps:
        return int(steps[1]), int(steps[2])
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)%-(\d+(?:\.\d+)?)%", text)
    if not parts:
        return text
    start, stop = (float(part) / 100 for part in parts.groups())
    if not 0 <= start < stop <= 1:
        raise InputError(f"--between {text}: give parts from 0% to 100%, the smaller one first")
    return start, stop


def run_dilution(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, measure, draw and write."""
    before, after = (parse_window(text) for text in options.between)
    layers = parse_layers(options.layers)
    layers = None if layers is None else list(dict.fromkeys(layers))
    from attnlens.reports.dilution import run_report

    run_report(
        options.traces,
        between=(before, after),
        layers=layers,
        include_copied=options.include_copied,
        save_folder=options.save_folder,
        formats=tuple(dict.fromkeys(options.format)),
    )
    return 0
