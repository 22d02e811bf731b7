"""``attnlens trend``: generate, record, and draw attention to the image step by step."""

from __future__ import annotations

import argparse
from typing import Any

from attnlens.cli.arguments import (
    RESUMED,
    add_map_options,
    add_measure_options,
    add_model_options,
    add_output_options,
    add_question_options,
    add_worker_options,
    check_workers,
    exit_status,
    one_process,
    output_options,
    questions_of,
    recording_options,
    workers_of,
)
from attnlens.errors import InputError
from attnlens.stores import located
from attnlens.text import one_line


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "trend",
        help="draw how much a model looks at the image while it answers",
        description="Generate an answer, record visual attention at each step, and write into "
        "SAVE_FOLDER/<image name>/ the pictures {mode}_step_attention, "
        "{mode}_step_attention_with_tokens and Step_attention_all_tokens (of a video also "
        "{mode}_frame_attention), the table "
        "{mode}_steps.csv (a row for each step), the trace {mode}_trace.zarr, and summary.json. "
        "Options are spelled with _ or -.",
    )
    add_question_options(
        parser,
        "back",
        "Traces go into SAVE_FOLDER/trend_runs/{mode}/, pictures and summaries into "
        "SAVE_FOLDER/trend/{mode}/, a folder for each question, and all steps into "
        f"SAVE_FOLDER/{{mode}}_steps.parquet; {RESUMED}",
        videos=True,
    )
    add_model_options(parser.add_argument_group("model and generation"), sampling=True)
    out = parser.add_argument_group("measure and output")
    add_measure_options(out)
    add_map_options(
        out, "of a video always, of one picture while it is small, of pictures in --data never"
    )
    add_output_options(out)
    add_worker_options(parser)
    parser.set_defaults(run=run_trend)


def run_trend(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, generate, measure, draw and write."""
    from attnlens.reports import trend as report
    from attnlens.runs.dataset import check_questions
    from attnlens.runs.settings import RecordingSettings

    check_workers(options)
    settings = RecordingSettings(**recording_options(options))
    output = report.TrendOutput(**output_options(options), definition=options.definition)
    settings.check()
    output.check(settings.max_new_tokens)
    asked = questions_of(options)
    for name in ("fps", "max_frames"):
        value = getattr(options, name)
        if value is not None and not any(question.is_video for question in asked):
            raise InputError(f"--{name} {value}: no question is about a video, so leave it out")
    questions, skipped = check_questions(asked, sampling=(settings.fps, settings.max_frames))
    with one_process(options):
        if options.data is None:
            folder = report.check_folder(questions[0], settings.mode, output)
        from attnlens.runs import recordings

        if options.data is None:
            vlm = recordings.load_for(settings)
            trace = recordings.record_one(vlm, questions[0], settings, alone=True)
            report.report_one(trace, questions[0], settings, output, folder)
            print(one_line(f"written to {folder}"))
            return 0
        root = located(output.save_folder) / "trend_runs"
        with workers_of(options, recordings.load_for, settings) as workers:
            recorded = recordings.record_each(workers, questions, settings, root, command="trend")
            shown = report.report_each(recorded, output, workers)
    return exit_status("trend", skipped, len(questions) - shown)
