"""``attnlens score``: which answers are right, and whether attention has to do with it."""

from __future__ import annotations

import argparse
from typing import Any

from attnlens.cli.arguments import (
    add_output_options,
    add_worker_options,
    check_workers,
    exit_status,
    output_options,
    workers_of,
)
from attnlens.stores import located


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "score",
        help="say which answers of a file are right, and compare attention of right and wrong ones",
        description="Judge the answers of a file, which any engine may have given, and write into "
        "SAVE_FOLDER/score/ every number (score.json), a row for each answer (answers.parquet), "
        "and, where traces are there, attention of right and wrong answers (attention_regions.csv, "
        "attention_steps.parquet, correctness.png). Pictures are not opened. Options are spelled "
        "with _ or -.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="answers with truths, in a format that attnlens replay reads, or a folder that "
        "attnlens trend --data or attnlens replay wrote",
    )
    parser.add_argument(
        "--answers_format",
        metavar="NAME",
        help="format of FILE: look-back, vllm, sglang, lmms-eval, batch, chat or plain (recognised "
        "by its fields)",
    )
    parser.add_argument("--against", metavar="FILE", help="other answers to the same questions")
    parser.add_argument(
        "--rule",
        default="attnlens",
        choices=("attnlens", "look-back"),
        help="attnlens: the rule of this package (the default); look-back: that of Look-Back's "
        "cal_score.py, with the answers on which the two differ",
    )
    parser.add_argument(
        "--benchmark",
        choices=("pope", "chair", "hallusionbench", "mme"),
        help="scores of a benchmark, too",
    )
    parser.add_argument(
        "--objects",
        metavar="FILE",
        help="for chair: a line for each object, its name and synonyms joined by commas, or JSON",
    )
    parser.add_argument(
        "--traces",
        metavar="DIR",
        help="traces of the same answers, written by attnlens trend --data or attnlens replay",
    )
    parser.add_argument(
        "--definition", default="mass", help="definition of attention of the curves by step (mass)"
    )
    add_output_options(parser, "--pictures", "--format")
    add_worker_options(parser, model=False)
    parser.set_defaults(run=run_score)


def run_score(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then read, judge, measure and write."""
    from attnlens.reports.score import ScoreOutput, report_score
    from attnlens.runs.cache import only_process
    from attnlens.runs.workers import no_model

    check_workers(options)
    output = ScoreOutput(
        **output_options(options),
        file=options.file,
        answers_format=options.answers_format,
        against=options.against,
        rule=options.rule,
        benchmark=options.benchmark,
        objects=options.objects,
        traces=options.traces,
        definition=options.definition,
    )
    output.check()
    with (
        only_process(located(output.save_folder)),
        workers_of(options, no_model, None) as workers,
    ):
        skipped, failed = report_score(output, workers)
    return exit_status("score", skipped, failed)
