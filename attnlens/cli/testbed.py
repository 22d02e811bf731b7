"""``attnlens testbed``: train the small model that ships, draw its scenes, score and study it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from attnlens.cli.arguments import at_least, write_json
from attnlens.errors import InputError
from attnlens.models.modes import MODES


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "testbed",
        help="train, sample, score or study the small model that ships with attnlens",
        description="The testbed: a small Qwen2.5-VL trained on generated scenes of coloured "
        "shapes, where the truth is known.",
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    _add_train(actions)
    _add_sample(actions)
    _add_score(actions)
    _add_study(actions)
    _add_recover(actions)


def _add_train(actions: Any) -> None:
    train = actions.add_parser(
        "train",
        help="train a model from generated scenes",
        description="Train a testbed model. A run that was interrupted goes on from its last "
        "checkpoint when the same command is given again.",
    )
    train.add_argument("--out", required=True, metavar="DIR", help="folder of the new checkpoint")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    train.add_argument("--steps", type=int, metavar="N", help="optimiser steps (5250)")
    train.add_argument(
        "--perception_steps",
        type=int,
        metavar="N",
        help="how many of them come first with short perception questions (600)",
    )
    train.add_argument("--start", metavar="DIR", help="go on from this testbed checkpoint")
    train.add_argument("--peak_rate", type=float, metavar="R", help="highest learning rate")
    train.add_argument("--checkpoint_every", type=int, default=100, metavar="N", help="steps (100)")
    train.set_defaults(run=run_train)


def _add_sample(actions: Any) -> None:
    sample = actions.add_parser(
        "sample",
        help="draw scenes with questions, answers and their truth",
        description="Write NNNN.png and NNNN.json for each sample into a new folder, and "
        "questions.jsonl, which --data of the other commands takes.",
    )
    sample.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    sample.add_argument("--count", type=int, default=10, metavar="N", help="(10)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    sample.add_argument("--mode", default="back", choices=list(MODES), help="(back)")
    sample.add_argument("--kind", metavar="KIND", help="kind of question (any)")
    sample.add_argument("--steps", type=int, metavar="N", help="steps of a chain question (2 or 3)")
    sample.add_argument(
        "--counts", type=int, metavar="N", help="times that the objects are counted (1, or drawn)"
    )
    sample.add_argument(
        "--grid",
        metavar="SIZE",
        choices=("small", "medium", "large"),
        help="size of the scenes (any)",
    )
    sample.set_defaults(run=run_sample)


def _add_score(actions: Any) -> None:
    score = actions.add_parser(
        "score",
        help="count right answers on held-out scenes",
        description="Let a model answer questions about scenes that training never saw, and "
        "print what fraction is right, by mode.",
    )
    _add_model_and_scenes(score)
    score.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES), help="(all)")
    score.add_argument("--kind", metavar="KIND", help="kind of question (all)")
    score.add_argument("--steps", type=int, metavar="N", help="steps of chain questions (2 or 3)")
    score.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    score.add_argument(
        "--image",
        default="true",
        choices=("true", "blank", "other"),
        help="which picture is shown: the scene, an empty one, or another scene (true)",
    )
    score.add_argument(
        "--no_copy",
        action="store_true",
        help="do not insert the visual tokens again before <REFLECTION> in mode reflection",
    )
    score.add_argument("--json", metavar="FILE", help="write the table here too")
    score.set_defaults(run=run_score)


def _add_study(actions: Any) -> None:
    study = actions.add_parser(
        "study",
        help="compare attention with the truth on held-out scenes",
        description="Visual share by section of the answer, mass at tokens that must be looked up "
        "against told ones, pointing by layer and head, and what hiding the image from some steps "
        "does to the facts of the verification. Written as JSON.",
    )
    study.add_argument("--json", required=True, metavar="FILE", help="write the tables here")
    _add_model_and_scenes(study)
    study.add_argument(
        "--modes", nargs="+", default=["cot", "back"], choices=list(MODES)[1:], help="(cot back)"
    )
    study.add_argument("--steps", type=int, metavar="N", help="ask chains of N steps only")
    study.set_defaults(run=run_study)


def _add_recover(actions: Any) -> None:
    recover = actions.add_parser(
        "recover",
        help="compare all ways of looking again, with their controls, on held-out scenes",
        description="COPY, ROUTE, boosts, knock-outs and their controls at the verification: what "
        "each brings back in visual attention, answers and verified facts right, cost; and which "
        "heads look, with the first of them knocked out. Written as JSON.",
    )
    recover.add_argument("--json", required=True, metavar="FILE", help="write the tables here")
    _add_model_and_scenes(recover)
    recover.add_argument(
        "--modes",
        nargs="+",
        default=["back", "reflection"],
        choices=("back", "reflection"),
        help="(back reflection)",
    )
    recover.set_defaults(run=run_recover)


def _add_model_and_scenes(parser: Any) -> None:
    """Add what it takes to ask a model about held-out scenes."""
    parser.add_argument("--model_path", default="testbed", metavar="NAME", help="(testbed)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="per mode (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")


def run_train(options: argparse.Namespace) -> int:
    """Train a model."""
    import dataclasses

    from attnlens.testbed.training import Plan, train

    given = {
        name: getattr(options, name)
        for name in ("seed", "steps", "perception_steps", "peak_rate")
        if getattr(options, name) is not None
    }
    plan = dataclasses.replace(Plan(), **given)
    at_least("seed", plan.seed, 0)
    at_least("steps", plan.steps, 1)
    at_least("perception_steps", plan.perception_steps, 0)
    at_least("checkpoint_every", options.checkpoint_every, 1)
    if not 0 < plan.peak_rate < 1:
        raise InputError(f"--peak_rate {plan.peak_rate}: give a number between 0 and 1")
    record = train(
        Path(options.out),
        plan,
        start=None if options.start is None else Path(options.start),
        checkpoint_every=options.checkpoint_every,
    )
    last = record["log"][-1]
    print(
        f"step {last['step']}: loss {last['loss']}, must-look words right "
        f"{last['must_look_right']:.1%}; written to {options.out}"
    )
    return 0


def run_sample(options: argparse.Namespace) -> int:
    """Write samples with their truth."""
    from attnlens.testbed import held_out_sample, load_tokenizer, save_samples

    at_least("count", options.count, 1)
    at_least("seed", options.seed, 0)
    samples = [
        held_out_sample(
            options.seed,
            i,
            options.mode,
            kind=options.kind,
            steps=options.steps,
            counts=options.counts,
            grid=options.grid,
        )
        for i in range(options.count)
    ]
    save_samples(samples, Path(options.out), load_tokenizer())
    print(f"{options.count} samples written to {options.out}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Score a model and print a table."""
    from attnlens.files import check_file

    at_least("scenes", options.scenes, 1)
    if options.json is not None:
        check_file(Path(options.json))
    from attnlens.models.load import load
    from attnlens.testbed import held_out_sample, score

    what = {"kind": options.kind, "steps": options.steps}
    held_out_sample(options.seed, 0, options.modes[0], **what)  # refuses what cannot be asked
    vlm = load(options.model_path, device=options.device, dtype=options.dtype)
    table = score(
        vlm,
        options.scenes,
        options.seed,
        modes=tuple(options.modes),
        **what,
        image=options.image,
        copy=not options.no_copy,
    )
    _print_table(table)
    if options.json is not None:
        record = {
            "model": options.model_path,
            "seed": options.seed,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            **what,
            "image": options.image,
            "copy": not options.no_copy,
            "modes": table,
        }
        write_json(options.json, record)
        print(f"written to {options.json}", file=sys.stderr)
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Compare attention with the truth."""
    from attnlens.files import check_file

    at_least("scenes", options.scenes, 2)
    check_file(Path(options.json))
    from attnlens.models.load import load
    from attnlens.testbed import held_out_sample
    from attnlens.testbed.study import study

    held_out_sample(options.seed, 0, options.modes[0], steps=options.steps)
    vlm = load(options.model_path, device=options.device, dtype="float32")
    record = {
        "model": options.model_path,
        "modes": {
            mode: study(vlm, options.scenes, options.seed, mode=mode, steps=options.steps)
            for mode in options.modes
        },
    }
    write_json(options.json, record)
    print(f"written to {options.json}")
    return 0


def run_recover(options: argparse.Namespace) -> int:
    """Compare all ways of looking again."""
    from attnlens.files import check_file

    at_least("scenes", options.scenes, 4)
    check_file(Path(options.json))
    from attnlens.models.load import load
    from attnlens.testbed import held_out_sample
    from attnlens.testbed.heads import looking_heads
    from attnlens.testbed.knockouts import knock_outs
    from attnlens.testbed.looking_again import looking_again

    held_out_sample(options.seed, 0, options.modes[0])
    vlm = load(options.model_path, device=options.device, dtype="float32")
    record: dict[str, Any] = {"model": options.model_path, "modes": {}}
    for mode in options.modes:
        table = looking_again(vlm, options.scenes, options.seed, mode=mode)
        _print_ways(table)
        hidden = knock_outs(vlm, options.scenes, options.seed, mode=mode)
        _print_hidden(hidden)
        heads = looking_heads(vlm, options.scenes, options.seed, mode=mode)
        record["modes"][mode] = {**table, "knockouts": hidden, "heads": heads}
        write_json(options.json, record)  # what is there is kept if the next mode fails
    print(f"written to {options.json}", file=sys.stderr)
    return 0


def _print_ways(table: dict[str, Any]) -> None:
    print(
        f"{table['mode']}: {table['scenes']} held-out scenes; rise of visual mass over the "
        "untouched twin, inserted tokens counted as image and not; (n): mean over n scenes, in "
        "which it acted or which have such facts"
    )
    names = ("with copied", "visual", "KL (nats)", "answer", "verified", "inserted")
    print(f"{'':36}" + "".join(f"{name:>13}" for name in names))
    scenes = table["scenes"]
    for run, row in table["rows"].items():
        own, both = row.get("mass", {}), row.get("mass, with copied", {})
        cells = [
            _of(both.get("rise"), ".3f", both.get("rise_samples"), scenes),
            _of(own.get("rise"), ".3f", own.get("rise_samples"), scenes),
            _of(own.get("kl"), ".3f", own.get("kl_samples"), scenes),
            _of(row["answer"]["mean"], ".1%", row["answer"]["count"], scenes),
            _of(row["verified"]["mean"], ".1%", row["verified"]["count"], scenes),
            _of(own.get("inserted"), ".0f", own.get("inserted_samples"), scenes),
        ]
        print(f"{run:36}" + "".join(f"{cell:>13}" for cell in cells))


def _print_hidden(table: dict[str, Any]) -> None:
    print(
        "words of the true answer that stay the most likely, with the image hidden; (n): mean over "
        "n scenes, which have such words"
    )
    names = list(table["rows"]["nothing"])
    print(f"{'':36}" + "".join(f"{name:>13}" for name in names))
    for span, row in table["rows"].items():
        cells = (_of(row[n]["mean"], ".1%", row[n]["count"], table["scenes"]) for n in names)
        print(f"{span:36}" + "".join(f"{cell:>13}" for cell in cells))


def _of(value: float | None, layout: str, count: int | None, scenes: int) -> str:
    """Show a mean, with the number of scenes behind it where that is not the number of all."""
    if value is None:
        return "-"
    return format(value, layout) + (f" ({count})" if count != scenes else "")


def _print_table(table: dict[str, dict[str, Any]]) -> None:
    columns = ("answer", "chance", "format", "described", "verified")
    print(f"{'mode':10}" + "".join(f"{name:>11}" for name in (*columns, "steps")))
    for mode, row in table.items():
        values = [row["chance"]["answer"] if c == "chance" else row[c] for c in columns]
        cells = "".join(f"{'-' if v is None else format(v, '.1%'):>11}" for v in values)
        print(f"{mode:10}{cells}{row['steps']:>11.1f}")
    for mode, row in table.items():
        kinds = ", ".join(
            f"{kind} {of['answer']:.1%} of {of['scenes']}" for kind, of in row["by_kind"].items()
        )
        print(f"{mode}: {kinds}")
