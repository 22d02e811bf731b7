"""``attnlens dilution``: how much of the decay of visual attention is mere key counts."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from attnlens.cli.arguments import (
    RESUMED,
    add_model_options,
    add_output_options,
    add_prompt_options,
    add_worker_options,
    at_least,
    check_workers,
    exit_status,
    one_process,
    output_options,
    recording_options,
    workers_of,
)
from attnlens.errors import InputError
from attnlens.stores import located


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "dilution",
        help="say how much of the decay of visual attention is due to growing key counts",
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
        f"relative to the file. Runs go into SAVE_FOLDER/dilution_runs/; {RESUMED}",
    )
    run = parser.add_argument_group("with --data")
    add_prompt_options(run, "cot")
    add_model_options(run, sampling=True)
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
    add_output_options(measure)
    add_worker_options(parser)
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


def warn_unasked(mode: str, words: str, windows: tuple[Any, Any]) -> None:
    """Warn of regions that the prompt does not ask for; a checkpoint may write them anyway."""
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
    if (options.traces is None) == (options.data is None):
        raise InputError("give either --traces DIR or --data FILE.jsonl")
    at_least("samples", options.samples, 0)
    check_workers(options)
    if options.traces is not None and (options.insertion or options.samples):
        raise InputError("--insertion and --samples need a model to run: give --data FILE.jsonl")
    asked = recording_options(options)
    if asked["layers"] is not None:
        asked["layers"] = list(dict.fromkeys(asked["layers"]))
    from attnlens.reports import dilution as report

    output = report.DilutionOutput(
        **output_options(options),
        between=(before, after),
        layers=asked["layers"],
        include_copied=options.include_copied,
    )
    if options.traces is not None:
        with one_process(options):
            report.report_traces(options.traces, output)
        return 0
    from attnlens.runs.dataset import check_questions, read_questions
    from attnlens.runs.settings import RecordingSettings

    at_least("max_new_tokens", options.max_new_tokens, 3)
    settings = RecordingSettings(**asked)
    settings.check()
    output.check()
    warn_unasked(settings.mode, settings.words, (before, after))
    good, skipped = check_questions(read_questions(options.data))
    questions = list(good)
    with one_process(options):
        from attnlens.runs import recordings
        from attnlens.runs.dilution import run_questions

        root = located(output.save_folder) / "dilution_runs"
        with workers_of(options, recordings.load_for, settings) as workers:
            runs = run_questions(
                workers,
                questions,
                settings,
                root,
                insertion=options.insertion,
                samples=options.samples,
            )
        report.report_runs(runs, root, output)
    return exit_status("dilution", skipped, runs.failed)
