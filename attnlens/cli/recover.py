"""``attnlens recover``: what looking again brings back, against an untouched twin."""

from __future__ import annotations

import argparse
from typing import Any

from attnlens.cli.arguments import (
    add_pixel_options,
    add_prompt_options,
    asking_options,
    at_least,
    exit_status,
    one_process,
)
from attnlens.cli.trend import questions_of
from attnlens.errors import InputError
from attnlens.models.modes import asked_words, verification_tag


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "recover",
        help="measure how much visual attention an intervention brings back",
        description="Generate an answer untouched and under each intervention, freely and with the "
        "untouched answer's tokens forced, and write into SAVE_FOLDER/<image name>_recovery/ a "
        "table of recoveries with intervals (table.csv; by layer or head in layers.csv or "
        "heads.csv; by step in steps.parquet), every number (recovery.nc), a figure and "
        "summary.json. Options are spelled "
        "with _ or -.",
    )
    what = parser.add_argument_group("what to ask")
    what.add_argument("--image_path", metavar="FILE", help="the picture")
    what.add_argument("--question", help="the question")
    what.add_argument(
        "--data",
        "--batch",
        metavar="FILE.jsonl",
        help='many questions, measured together: a line each, {"image": ..., "question": ...} '
        'and, where the true answer is known, "answer". Results go into '
        "SAVE_FOLDER/batch_recovery/, runs into batch_recovery_runs/{mode}/; given again after an "
        "interruption, the command goes on where it stopped",
    )
    add_prompt_options(what, "back")
    add_pixel_options(what)
    do = parser.add_argument_group("what to do")
    do.add_argument(
        "--intervention",
        action="append",
        required=True,
        metavar="WHAT",
        help="once for each: copy, copy:blank, copy:text, copy:FILE, route:PERCENT, "
        "route:PERCENT:random, route:PERCENT:bottom, inject:TEXT, close:TEXT, boost:LOG_ODDS, "
        "pai:ALPHA, knockout; join by + what is done together",
    )
    do.add_argument(
        "--when",
        help="trigger: a text in the answer (text:TEXT), step:N, every:N or below:SHARE; when not "
        "given, the tag of the verification that the prompt asks for, <back> or <REFLECTION>",
    )
    do.add_argument(
        "--positions",
        default="fresh",
        choices=("fresh", "original", "frozen-cache"),
        help="where inserted visual tokens stand (fresh)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model_path", default="testbed", metavar="NAME", help="(testbed)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    model.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    out = parser.add_argument_group("generation, measure and output")
    out.add_argument("--max_new_tokens", type=int, default=2048, metavar="N", help="(2048)")
    out.add_argument("--definition", default="mass", help="definition of attention (mass)")
    out.add_argument(
        "--detail",
        default="layer",
        choices=("head", "layer", "step"),
        help="how finely recovery.nc keeps rises, with a table heads.csv by head, which takes much "
        "room, or layers.csv (layer)",
    )
    out.add_argument("--save_folder", default="results", metavar="DIR", help="(results)")
    out.add_argument("--format", nargs="+", default=["png"], choices=("png", "pdf", "svg"))
    parser.set_defaults(run=run_recover)


def run_recover(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, run, measure, draw and write."""
    from attnlens.reports.asking import RecoverySettings
    from attnlens.reports.jobs import check_jobs
    from attnlens.reports.recovery import run_recovery

    at_least("max_new_tokens", options.max_new_tokens, 2)
    asked = asking_options(options)
    words = asked_words(options.mode, asked["template"], options.system)
    when = options.when or verification_tag(words)
    if not when:
        raise InputError(
            f"answers of mode {options.mode!r} have no verification to act at: give --when, such "
            "as --when step:20"
        )
    settings = RecoverySettings(
        **asked,
        interventions=tuple(options.intervention),
        when=when,
        positions=options.positions,
        definition=options.definition,
        detail=options.detail,
        formats=tuple(dict.fromkeys(options.format)),
    )
    settings.check()
    jobs, skipped = check_jobs(questions_of(options))
    with one_process(options):
        failed = run_recovery(jobs, settings)
    return exit_status("recover", skipped, failed)
