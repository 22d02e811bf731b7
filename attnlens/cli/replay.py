"""``attnlens replay``: record the attention of answers that another engine gave."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from attnlens.cli.arguments import (
    RESUMED,
    add_intervention_options,
    add_map_options,
    add_measure_options,
    add_model_options,
    add_output_options,
    add_prompt_options,
    add_worker_options,
    check_workers,
    exit_status,
    intervention_options,
    kept_options,
    one_process,
    output_options,
    prompt_options,
    workers_of,
)
from attnlens.errors import InputError
from attnlens.stores import located
from attnlens.text import one_line

MODE = "back"
"""Mode where neither the file nor an option names one."""


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "replay",
        help="record the attention of answers that another engine gave",
        description="Read answers of vLLM, SGLang, lmms-eval, Look-Back's evaluation, a chat or a "
        "plain file, feed each through the model once, and write what attnlens trend writes of "
        "many questions: traces into SAVE_FOLDER/replay_runs/{mode}/, pictures and summaries into "
        "SAVE_FOLDER/replay/{mode}/, a folder for each answer, and all steps into "
        f"SAVE_FOLDER/replay_{{mode}}_steps.parquet; {RESUMED}. What the file does not say is "
        "taken from the options, and printed. With --intervention each answer is also fed under "
        "the intervention: these twins go into SAVE_FOLDER/replay_runs/{mode}_interventions/, "
        "their steps into replay_{mode}_twins.parquet, and what the intervention brings back into "
        "replay_{mode}_recovery.csv.",
    )
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--data", required=True, metavar="FILE", help="the answers: JSON Lines or JSON"
    )
    group.add_argument(
        "--format",
        "--answers_format",
        metavar="NAME",
        help="look-back, vllm, sglang, lmms-eval, batch, chat or plain (recognised by its fields)",
    )
    group.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the pictures, each with the name that the file has for it, or named after "
        "its id (the folder of the file)",
    )
    group.add_argument(
        "--image_column",
        metavar="NAME",
        help="field of the records that holds the picture's name, or the picture in base64",
    )
    asked = parser.add_argument_group("how they were asked, where the file does not say")
    add_prompt_options(asked, MODE)
    parser.set_defaults(mode=None)
    add_intervention_options(
        parser.add_argument_group("forced twins: the same tokens under an intervention"),
        required=False,
    )
    add_model_options(parser.add_argument_group("model"), sampling=False, generates=False)
    out = parser.add_argument_group("measure and output")
    add_measure_options(out)
    add_map_options(out, "not kept")
    add_output_options(out, "--pictures")
    add_worker_options(parser)
    parser.set_defaults(run=run_replay)


def run_replay(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then load, replay, measure, draw and write."""
    from attnlens.reports import trend as report
    from attnlens.runs.responses import read_responses
    from attnlens.runs.settings import InterventionSettings, ReplaySettings

    check_workers(options)
    asked = prompt_options(options)
    settings = ReplaySettings(**{**asked, "mode": options.mode or MODE}, **kept_options(options))
    output = report.TrendOutput(**output_options(options), definition=options.definition)
    settings.check()
    output.check()
    if options.intervention:
        InterventionSettings(**intervention_options(options, [settings.words])).check()
    for name in ("when", "positions"):
        value = getattr(options, name)
        if value is not None and not options.intervention:
            raise InputError(f"--{name} {value!r} without --intervention: say what is done")
    folder = located(output.save_folder)
    with one_process(options):
        read = read_responses(
            options.data,
            images=options.images,
            format=options.format,
            image_column=options.image_column,
            save_folder=folder / "replay_pictures",
        )
        from attnlens.runs import recordings, replays

        given = {n: asked[n] for n in replays.OPTIONS if asked[n] is not None}
        notes = [*read.assumed, *replays.assumed(read.responses, settings, given)]
        print(f"{options.data}: answers in the format {read.format}", file=sys.stderr)
        for text in notes:
            print(one_line(f"attnlens replay: assumed: {text}"), file=sys.stderr)
        responses, skipped = replays.check_responses(read.responses)
        acting = None
        if options.intervention:
            # of the prompts as the file says
            words = (replays.settings_of(one, settings).words for one in responses)
            acting = InterventionSettings(**intervention_options(options, words))
        root = folder / "replay_runs"
        with workers_of(options, recordings.load_for, settings) as workers:
            recorded = replays.replay_each(workers, responses, settings, root, command="replay")
            done = report.report_each(recorded, output, workers, command="replay")
            if acting and recorded:
                from attnlens.reports.twins import report_twins
                from attnlens.runs.twins import twin_each

                twins = twin_each(workers, recorded, responses, acting, root)
                done = min(done, report_twins(twins, acting, output))
    return exit_status("replay", skipped, len(responses) - done)
