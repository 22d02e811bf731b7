"""``attnlens dilution``: how much of the decay of visual attention is mere key counts."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from attnlens.cli.arguments import (
    add_pixel_options,
    add_prompt_options,
    at_least,
    exit_status,
)
from attnlens.cli.trend import generation_options, parse_layers
from attnlens.errors import InputError
from attnlens.locking import only_process


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "dilution",
        help="say how much of the decay of visual attention is growing key counts",
        description="Read saved traces (of attnlens trend, or Trace.save), or ask a model the "
        "questions of a file; check Theorem 3.1 of Qwen-LookAgain over the runs, split the change "
        "of visual attention between two windows into key counts and preference, and write into "
        "SAVE_FOLDER/dilution/ every number (dilution.json; dilution.parquet, a row for each "
        "number; steps.parquet, a row for each step; by_layer.csv, by_head.csv, curves.csv) and "
        "figures. "
        "Options are spelled with _ or -.",
    )
    what = parser.add_argument_group("which runs")
    what.add_argument("--traces", metavar="DIR", help="folder of traces, *.zarr at any depth")
    what.add_argument(
        "--data",
        metavar="FILE.jsonl",
        help='or questions to ask: a line each, {"image": ..., "question": ...}; image paths are '
        "relative to the file. Runs go into SAVE_FOLDER/dilution_runs/; given again after an "
        "interruption, the command goes on where it stopped",
    )
    run = parser.add_argument_group("with --data")
    add_prompt_options(run, "cot")
    add_pixel_options(run)
    run.add_argument("--model_path", default="testbed", metavar="NAME", help="(testbed)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    run.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    run.add_argument("--max_new_tokens", type=int, default=2048, metavar="N", help="(2048)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")
    run.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 decodes greedily (0)"
    )
    run.add_argument(
        "--insertion",
        action="store_true",
        help="check Theorem 3.2, too: the same answers forced with more and more visual tokens "
        "inserted in their middle",
    )
    run.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="bound the mutual information of answer and image from N sampled answers to each "
        "question, against no image and up to eight other images of the file (0: do not)",
    )
    measure = parser.add_argument_group("measure and output")
    measure.add_argument(
        "--between",
        nargs=2,
        default=["0%-25%", "75%-100%"],
        metavar=("BEFORE", "AFTER"),
        help="what is compared: names of regions (think back), steps (0-40) or parts of the run "
        "(0%%-25%% 75%%-100%%, the default)",
    )
    measure.add_argument(
        "--layers",
        metavar="LIST",
        help="layers to use, of those recorded, such as 0,2 or 4-7 (all)",
    )
    measure.add_argument(
        "--include_copied",
        action="store_true",
        help="count visual tokens that were inserted again as visual",
    )
    measure.add_argument("--save_folder", default="results", metavar="DIR", help="(results)")
    measure.add_argument("--format", nargs="+", default=["png"], choices=("png", "pdf", "svg"))
    parser.set_defaults(run=run_dilution)


def parse_window(text: str) -> Any:
    """Read ``back``, ``0-40`` or ``0%-25%`` into a window of steps.

    Raises
    ------
    InputError
        If it is none of these, holds no step, or a part of a run is not between 0% and 100%.
    """
    steps = re.fullmatch(r"(\d+)-(\d+)", text)
    if steps:
        first, last = int(steps[1]), int(steps[2])
        if first >= last:
            raise InputError(
                f"--between {text}: no step; give the first and the one after the last"
            )
        return first, last
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)%-(\d+(?:\.\d+)?)%", text)
    if not parts:
        from attnlens.segments import REGIONS

        if text not in REGIONS:
            raise InputError(
                f"--between {text!r}: give the name of a region ({', '.join(REGIONS)}), steps such "
                "as 0-40, or a part of the run such as 0%-25%"
            )
        return text
    start, stop = (float(part) / 100 for part in parts.groups())
    if not 0 <= start < stop <= 1:
        raise InputError(f"--between {text}: give parts from 0% to 100%, the smaller one first")
    return start, stop


def say_unasked(mode: str, words: str, windows: tuple[Any, Any]) -> None:
    """Say which regions a prompt does not ask for: a checkpoint may write them all the same."""
    tags = words.lower()
    for name in dict.fromkeys(window for window in windows if isinstance(window, str)):
        if f"<{name}>" not in tags and name != "answer":
            print(
                f"attnlens dilution: mode {mode!r} does not ask for <{name}>: answers without it "
                "will be left out",
                file=sys.stderr,
            )


def run_dilution(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, measure, draw and write."""
    before, after = (parse_window(text) for text in options.between)
    layers = parse_layers(options.layers)
    layers = None if layers is None else list(dict.fromkeys(layers))
    if (options.traces is None) == (options.data is None):
        raise InputError("give either --traces DIR or --data FILE.jsonl")
    at_least("samples", options.samples, 0)
    if options.traces is not None and (options.insertion or options.samples):
        raise InputError("--insertion and --samples need a model to run: give --data FILE.jsonl")
    from attnlens.reports.dilution import DilutionSettings, report_questions, report_traces

    settings = DilutionSettings(
        between=(before, after),
        layers=layers,
        include_copied=options.include_copied,
        insertion=options.insertion,
        samples=options.samples,
        save_folder=options.save_folder,
        formats=tuple(dict.fromkeys(options.format)),
    )
    if options.traces is not None:
        with only_process(Path(options.save_folder)):
            report_traces(options.traces, settings)
        return 0
    from attnlens.reports.asking import TrendSettings
    from attnlens.reports.jobs import check_jobs, read_jobs

    at_least("max_new_tokens", options.max_new_tokens, 3)
    asked = TrendSettings(**generation_options(options), layers=layers)
    asked.check()
    say_unasked(asked.mode, asked.words, (before, after))
    jobs, skipped = check_jobs(read_jobs(options.data))
    with only_process(Path(options.save_folder)):
        failed = report_questions(jobs, asked, settings)
    return exit_status("dilution", skipped, failed)
