"""``attnlens trend``: generate, record, and draw how visual attention goes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from attnlens.cli.arguments import (
    add_pixel_options,
    add_prompt_options,
    asking_options,
    exit_status,
    one_process,
)
from attnlens.errors import InputError

if TYPE_CHECKING:
    from attnlens.reports.jobs import Job


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "trend",
        help="draw how much a model looks at the image while it answers",
        description="Generate an answer, record visual attention at each step, and write into "
        "SAVE_FOLDER/<image name>/ the pictures {mode}_step_attention, "
        "{mode}_step_attention_with_tokens and Step_attention_all_tokens, the table "
        "{mode}_steps.csv (a row for each step), the trace {mode}_trace.zarr, and summary.json. "
        "Options are spelled with _ or -.",
    )
    what = parser.add_argument_group("what to ask")
    what.add_argument("--image_path", metavar="FILE", help="the picture")
    what.add_argument("--question", help="the question")
    what.add_argument(
        "--data",
        "--batch",
        metavar="FILE.jsonl",
        help='many questions instead of one: a line each, {"image": ..., "question": ...} and, '
        'where it is known, "answer"; image paths are relative to the file. Each goes into a '
        "folder of its own, and all steps into SAVE_FOLDER/{mode}_steps.parquet; given again "
        "after an interruption, the command goes on where it stopped",
    )
    add_prompt_options(what, "back")
    add_pixel_options(what)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_path",
        default="testbed",
        metavar="NAME",
        help="testbed (ships with attnlens), a folder, or a Hub name of a Qwen2.5-VL or Qwen2-VL "
        "checkpoint",
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    model.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: the checkpoint's own",
    )
    run = parser.add_argument_group("generation")
    run.add_argument("--max_new_tokens", type=int, default=2048, metavar="N", help="(2048)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")
    run.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 decodes greedily (the default); above 0 samples",
    )
    out = parser.add_argument_group("measure and output")
    out.add_argument(
        "--definition",
        default="look-back",
        help="definition of attention to the image (look-back); attnlens.measures lists them",
    )
    out.add_argument(
        "--layers", metavar="LIST", help="layers to record, such as 0,2,-1 or 4-7 (all)"
    )
    out.add_argument("--save_folder", default="results", metavar="DIR", help="(results)")
    out.add_argument(
        "--format",
        nargs="+",
        default=["png"],
        choices=("png", "pdf", "svg"),
        help="formats of the pictures (png)",
    )
    parser.set_defaults(run=run_trend)


def parse_layers(text: str | None) -> list[int] | None:
    """Read ``0,2,-1`` or ``4-7`` into layer indices.

    Raises
    ------
    InputError
        If the text is neither.
    """
    if text is None:
        return None
    layers: list[int] = []
    for piece in text.split(","):
        first, dash, last = (
            piece.strip().partition("-") if piece.strip()[:1] != "-" else (piece.strip(), "", "")
        )
        try:
            layers += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as error:
            raise InputError(f"--layers {text!r}: give indices such as 0,2,-1 or 4-7") from error
    return layers


def run_trend(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, generate, measure, draw and write."""
    from attnlens.reports.asking import TrendSettings
    from attnlens.reports.jobs import check_jobs
    from attnlens.reports.trend import run_jobs

    settings = TrendSettings(
        **generation_options(options),
        definition=options.definition,
        layers=parse_layers(options.layers),
        formats=tuple(dict.fromkeys(options.format)),
    )
    settings.check()
    jobs, skipped = check_jobs(questions_of(options))
    with one_process(options):
        failed = run_jobs(jobs, settings)
    return exit_status("trend", skipped, failed)


def generation_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what model is asked and how, as the settings of a run name it."""
    return {
        **asking_options(options),
        "seed": options.seed,
        "temperature": options.temperature,
    }


def questions_of(options: argparse.Namespace) -> list[Job]:
    """Read the questions from the options ``image_path``, ``question`` and ``data``."""
    from attnlens.reports.jobs import Job, read_jobs

    if options.data is not None:
        if options.image_path is not None or options.question is not None:
            raise InputError("--data brings its own images and questions: leave the others out")
        return read_jobs(options.data)
    for name in ("image_path", "question"):
        if getattr(options, name) is None:
            raise InputError(f"--{name} is missing: give an image and a question, or --data")
    return [Job(image=options.image_path, question=options.question)]
