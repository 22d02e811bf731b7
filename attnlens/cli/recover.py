"""``attnlens recover``: what looking again brings back, against an untouched twin."""

from __future__ import annotations

import argparse
from typing import Any

from attnlens.cli.arguments import (
    RESUMED,
    add_intervention_options,
    add_model_options,
    add_output_options,
    add_question_options,
    add_worker_options,
    ask_options,
    at_least,
    check_workers,
    exit_status,
    intervention_options,
    one_process,
    output_options,
    questions_of,
    workers_of,
)
from attnlens.models.modes import asked_words
from attnlens.stores import located


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "recover",
        help="measure how much visual attention an intervention brings back",
        description="Generate an answer untouched and under each intervention, freely and with the "
        "untouched answer's tokens forced, and write into SAVE_FOLDER/<image name>_recovery/ a "
        "table of recoveries with intervals (table.csv; by layer or head in layers.csv or "
        "heads.csv; by step in steps.parquet), every number (recovery.zarr), a figure and "
        "summary.json. Options are spelled "
        "with _ or -.",
    )
    add_question_options(
        parser,
        "back",
        "They are measured together: results go into SAVE_FOLDER/batch_recovery/, runs into "
        f"batch_recovery_runs/{{mode}}/; {RESUMED}",
    )
    add_intervention_options(parser.add_argument_group("what to do"), required=True)
    add_model_options(parser.add_argument_group("model and generation"), sampling=False)
    out = parser.add_argument_group("measure and output")
    out.add_argument("--definition", default="mass", help="definition of attention (mass)")
    out.add_argument(
        "--detail",
        default="layer",
        choices=("head", "layer", "step"),
        help="how finely recovery.zarr keeps rises, with a table layers.csv (layer) or heads.csv "
        "(head), which takes much room",
    )
    add_output_options(out)
    add_worker_options(parser)
    parser.set_defaults(run=run_recover)


def run_recover(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, run, measure, draw and write."""
    from attnlens.reports import recovery as report
    from attnlens.runs.dataset import check_questions
    from attnlens.runs.settings import RecoverySettings

    at_least("max_new_tokens", options.max_new_tokens, 2)
    check_workers(options)
    asked = ask_options(options)
    words = asked_words(options.mode, asked["template"], options.system)
    settings = RecoverySettings(
        **asked, **intervention_options(options, [words]), detail=options.detail
    )
    output = report.RecoveryOutput(**output_options(options), definition=options.definition)
    settings.check()
    output.check()
    good, skipped = check_questions(questions_of(options))
    questions = list(good)
    with one_process(options):
        folder = report.check_folder(questions, output)
        from attnlens.runs import recoveries

        if options.data is None:
            there = questions
            result = recoveries.recover_one(settings.load(), questions[0], settings)
        else:
            root = located(output.save_folder) / "batch_recovery_runs"
            with workers_of(options, recoveries.load_warm, settings) as workers:
                result, there = recoveries.recover_each(workers, questions, settings, root)
        report.report_recovery(result, there, settings, output, folder)
    return exit_status("recover", skipped, len(questions) - len(there))
