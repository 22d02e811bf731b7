"""``attnlens testbed``: train the small model that ships, draw its scenes, score and study it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.cli.arguments import at_least, write_json
from attnlens.errors import InputError
from attnlens.models.modes import MODES

if TYPE_CHECKING:
    from attnlens.models.load import VLM


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
    _add_patch(actions)


def _add_train(actions: Any) -> None:
    train = actions.add_parser(
        "train",
        help="train a model from generated scenes",
        description="Train a testbed model. Given again after an interruption, the same command "
        "resumes from the last checkpoint.",
    )
    train.add_argument("--out", required=True, metavar="DIR", help="folder of the new checkpoint")
    _add_seed(train)
    train.add_argument("--steps", type=int, metavar="N", help="optimiser steps (5250)")
    train.add_argument(
        "--perception_steps",
        type=int,
        metavar="N",
        help="number of steps at the beginning with short perception questions (600)",
    )
    train.add_argument("--start", metavar="DIR", help="start from this testbed checkpoint")
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
    _add_seed(sample)
    sample.add_argument("--mode", default="back", choices=list(MODES), help="(back)")
    _add_kind(sample)
    _add_steps(sample)
    sample.add_argument(
        "--counts", type=int, metavar="N", help="how often the objects are counted (1, or random)"
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
    _add_modes(score, list(MODES), list(MODES))
    _add_kind(score)
    _add_steps(score)
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
    _add_json(score, required=False)
    score.set_defaults(run=run_score)


def _add_study(actions: Any) -> None:
    study = actions.add_parser(
        "study",
        help="compare attention with the truth on held-out scenes",
        description="Visual share by section of the answer, mass at tokens that only the image "
        "determines against those that the text determines, pointing by layer and head, and what "
        "hiding the image from some steps does to the facts of the verification. Written as JSON.",
    )
    _add_json(study, required=True)
    _add_model_and_scenes(study)
    _add_modes(study, ["cot", "back"], list(MODES)[1:])
    _add_steps(study)
    study.set_defaults(run=run_study)


def _add_recover(actions: Any) -> None:
    recover = actions.add_parser(
        "recover",
        help="compare all interventions, with their controls, on held-out scenes",
        description="COPY, ROUTE, boosts, knock-outs and their controls at the verification: how "
        "much visual attention each recovers, answers and verified facts right, cost; and which "
        "heads look, with the first of them knocked out. Written as JSON.",
    )
    _add_json(recover, required=True)
    _add_model_and_scenes(recover)
    _add_modes(recover, ["back", "reflection"], ["back", "reflection"])
    recover.set_defaults(run=run_recover)


def _add_patch(actions: Any) -> None:
    patch = actions.add_parser(
        "patch",
        help="patch pairs of held-out scenes that differ in one object",
        description="Does patching find the visual token that shows the object, which head reads "
        "it, and is that the head whose knock-out costs the facts most? Written as JSON after each "
        "pair; given again after an interruption, the same command goes on.",
    )
    _add_json(patch, required=True)
    _add_model(patch)
    patch.add_argument("--pairs", type=int, default=100, metavar="N", help="(100)")
    _add_seed(patch)
    patch.set_defaults(run=run_patch)


def _add_model(parser: Any) -> None:
    parser.add_argument("--model_path", default="testbed", metavar="NAME", help="(testbed)")
    parser.add_argument("--device", default="auto")


def _add_model_and_scenes(parser: Any) -> None:
    _add_model(parser)
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="per mode (100)")
    _add_seed(parser)


def _add_modes(parser: Any, default: list[str], choices: list[str]) -> None:
    names = "all" if default == list(MODES) else " ".join(default)
    parser.add_argument("--modes", nargs="+", default=default, choices=choices, help=f"({names})")


def _add_seed(parser: Any) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")


def _add_kind(parser: Any) -> None:
    parser.add_argument("--kind", metavar="KIND", help="kind of question (any)")


def _add_steps(parser: Any) -> None:
    parser.add_argument("--steps", type=int, metavar="N", help="ask only chains of N steps")


def _add_json(parser: Any, *, required: bool) -> None:
    parser.add_argument("--json", required=required, metavar="FILE", help="write all numbers here")


def run_train(options: argparse.Namespace) -> int:
    """Train a model."""
    import dataclasses

    from attnlens.testbed.model.training import TrainingPlan, train

    names = ("seed", "steps", "perception_steps", "peak_rate")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    plan = dataclasses.replace(TrainingPlan(), **chosen)
    at_least("seed", plan.seed, 0)
    at_least("steps", plan.steps, 1)
    at_least("perception_steps", plan.perception_steps, 0)
    at_least("checkpoint_every", options.checkpoint_every, 1)
    if not 0 < plan.peak_rate < 1:
        raise InputError(f"--peak_rate {plan.peak_rate}: give a number between 0 and 1")
    start = None if options.start is None else Path(options.start)
    every = options.checkpoint_every
    last = train(Path(options.out), plan, start=start, checkpoint_every=every)["log"][-1]
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
    asked = {name: getattr(options, name) for name in ("kind", "steps", "counts", "grid")}
    samples = [
        held_out_sample(options.seed, i, options.mode, **asked) for i in range(options.count)
    ]
    save_samples(samples, Path(options.out), load_tokenizer())
    print(f"{options.count} samples written to {options.out}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Score a model and print a table."""
    asked = {"kind": options.kind, "steps": options.steps}
    shown = {"image": options.image, "copy": not options.no_copy}
    vlm = _checked_model(options, 1, options.dtype, asked)
    from attnlens.testbed.studies.scoring import score, table_text

    table = score(vlm, options.scenes, options.seed, modes=options.modes, **asked, **shown)
    print(table_text(table))
    if options.json is not None:
        record = {
            "model": options.model_path,
            "seed": options.seed,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            **asked,
            **shown,
            "modes": table,
        }
        write_json(options.json, record)
        print(f"written to {options.json}", file=sys.stderr)
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Compare attention with the truth."""
    vlm = _checked_model(options, 2, "float32", {"steps": options.steps})
    from attnlens.testbed.studies.study import study

    tables = {
        mode: study(vlm, options.scenes, options.seed, mode=mode, steps=options.steps)
        for mode in options.modes
    }
    write_json(options.json, {"model": options.model_path, "modes": tables})
    print(f"written to {options.json}")
    return 0


def run_patch(options: argparse.Namespace) -> int:
    """Patch pairs of scenes."""
    from attnlens.files import check_file
    from attnlens.models.load import load
    from attnlens.progress import progress
    from attnlens.runs.provenance import model_provenance
    from attnlens.testbed.studies.patched_pairs import patched_pair, summary
    from attnlens.testbed.world.pairs import held_out_pair

    at_least("pairs", options.pairs, 1)
    path = Path(options.json)
    check_file(path)
    held_out_pair(options.seed, 0)
    vlm = load(options.model_path, device=options.device, dtype="float32")
    made_with = {"model": model_provenance(vlm), "seed": options.seed}
    rows = _rows_made(path, made_with)[: options.pairs]
    for index in progress(range(len(rows), options.pairs), description="patching pairs"):
        rows.append(patched_pair(vlm, index, options.seed))
        write_json(path, {"made_with": made_with, "rows": rows})
    write_json(path, {"made_with": made_with, **summary(rows), "rows": rows})
    print(f"written to {path}")
    return 0


def _rows_made(path: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an earlier run with the same model and seed has written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    same = isinstance(found, dict) and found.get("made_with") == made_with
    return found["rows"] if same else []


def run_recover(options: argparse.Namespace) -> int:
    """Compare all interventions."""
    vlm = _checked_model(options, 4, "float32", {})
    from attnlens.testbed.studies import knockouts, looking_again

    record: dict[str, Any] = {"model": options.model_path, "modes": {}}
    for mode in options.modes:
        table = looking_again.looking_again(vlm, options.scenes, options.seed, mode=mode)
        print(looking_again.table_text(table))
        hidden = knockouts.knock_outs(vlm, options.scenes, options.seed, mode=mode)
        print(knockouts.table_text(hidden))
        heads = knockouts.looking_heads(vlm, options.scenes, options.seed, mode=mode)
        record["modes"][mode] = {**table, "knockouts": hidden, "heads": heads}
        write_json(options.json, record)  # after each mode, in case the next one fails
    print(f"written to {options.json}", file=sys.stderr)
    return 0


def _checked_model(
    options: argparse.Namespace, least: int, dtype: str, asked: dict[str, Any]
) -> VLM:
    """Refuse what cannot be asked or written, then load the model."""
    from attnlens.files import check_file
    from attnlens.models.load import load
    from attnlens.testbed import held_out_sample

    at_least("scenes", options.scenes, least)
    if options.json is not None:
        check_file(Path(options.json))
    held_out_sample(options.seed, 0, options.modes[0], **asked)
    return load(options.model_path, device=options.device, dtype=dtype)
