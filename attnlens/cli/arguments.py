"""Options that several subcommands share, each declared once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.models.modes import MODE_NAMES, MODES_HELP, check_template, verification_tag
from attnlens.stores import is_of_one_process, located

if TYPE_CHECKING:
    from attnlens.runs.dataset import Question
    from attnlens.runs.workers import Workers

RESUMED = "given again after an interruption, the command goes on where it stopped"


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Parameters
    ----------
    name
        The option, without its dashes.
    value, least
        What was given, and the smallest number that works.

    Raises
    ------
    InputError
        If ``value`` is less than ``least``.
    """
    if value < least:
        raise InputError(f"--{name} {value}: give at least {least}")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with write_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def add_question_options(
    parser: argparse.ArgumentParser, mode: str, data_help: str, *, videos: bool = False
) -> None:
    """Add the options that say what is asked: one question, or those of a file.

    Parameters
    ----------
    parser
        The parser.
    mode
        Default of ``--mode``.
    data_help
        What comes of the questions of a file.
    videos
        Whether it may be about a video.
    """
    group = parser.add_argument_group("what to ask")
    group.add_argument("--image_path", metavar="FILE", help="the picture")
    if videos:
        group.add_argument(
            "--video_path",
            metavar="FILE",
            help="a video in place of the picture: a file (needs attnlens[video]) or a folder of "
            "frames",
        )
        group.add_argument(
            "--fps",
            type=float,
            metavar="N",
            help="frames shown of each second of a file; of a folder, how many of its frames make "
            "a second (2)",
        )
        group.add_argument(
            "--max_frames", type=int, metavar="N", help="most frames shown of a video (768)"
        )
    group.add_argument("--question", help="the question")
    group.add_argument(
        "--data",
        "--batch",
        metavar="FILE.jsonl",
        help='many questions instead of one: a line each, {"image": ..., "question": ...} and, '
        'if it is known, "answer"; image paths are relative to the file. ' + data_help,
    )
    add_prompt_options(group, mode)


def add_prompt_options(group: Any, mode: str) -> None:
    """Add the options that say in what words, and at what picture size, a question is asked.

    Parameters
    ----------
    group
        A group of options.
    mode
        Default of ``--mode``.
    """
    group.add_argument(
        "--mode",
        default=mode,
        choices=MODE_NAMES,
        metavar="MODE",
        help=f"format of the answer: {MODES_HELP} ({mode})",
    )
    group.add_argument(
        "--template",
        metavar="FILE",
        help="a text file with your own words in place of the mode's, with {question} where the "
        "question goes; one line end at its end is left out. --mode then names the results and "
        "gives the system prompt",
    )
    group.add_argument(
        "--system",
        metavar="TEXT",
        help="your own system prompt, in place of the mode's (You are a helpful assistant.)",
    )
    for name, which in (("min", "smallest"), ("max", "largest")):
        group.add_argument(
            f"--{name}_pixels",
            type=int,
            metavar="N",
            help=f"{which} area of a picture after resizing, in pixels (the checkpoint's own; "
            "Look-Back's evaluation: 262144 to 1000000)",
        )


def add_intervention_options(group: Any, *, required: bool) -> None:
    """Add the options that say what is done to an answer, when, and at which positions.

    Parameters
    ----------
    group
        A group of options.
    required
        Whether there must be something to do.
    """
    group.add_argument(
        "--intervention",
        action="append",
        default=[],
        required=required,
        metavar="WHAT",
        help="repeat for each; join with + those to apply together: copy, copy:blank, copy:text, "
        "copy:FILE, route:PERCENT, route:PERCENT:random, route:PERCENT:bottom, inject:TEXT, "
        "close:TEXT, boost:LOG_ODDS, pai:ALPHA, knockout",
    )
    group.add_argument(
        "--when",
        help="trigger: a text in the answer (text:TEXT), step:N, every:N or below:SHARE; when not "
        "given, the tag of the verification that the prompt asks for, <back> or <REFLECTION>",
    )
    group.add_argument(
        "--positions",
        choices=("fresh", "original", "frozen-cache"),
        help="positions of inserted visual tokens (fresh)",
    )


def add_model_options(group: Any, *, sampling: bool, generates: bool = True) -> None:
    """Add the options that say which model generates, and how.

    Parameters
    ----------
    group
        A group of options.
    sampling
        Whether answers may be sampled.
    generates
        Whether it generates answers at all.
    """
    group.add_argument(
        "--model_path",
        default="testbed",
        metavar="NAME",
        help="testbed (ships with attnlens, the default), a folder, or a Hub name such as "
        "Qwen/Qwen2.5-VL-7B-Instruct",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: the checkpoint's own",
    )
    if generates:
        group.add_argument(
            "--max_new_tokens", type=int, default=2048, metavar="N", help="longest answer (2048)"
        )
    if sampling:
        group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")
        group.add_argument(
            "--temperature",
            type=float,
            default=0.0,
            metavar="T",
            help="0 decodes greedily (the default); above 0 samples",
        )


def add_measure_options(group: Any) -> None:
    """Add the options that say what is recorded, and by which definition it is shown."""
    group.add_argument(
        "--definition",
        default="look-back",
        help="definition of attention to the image (look-back); attnlens.measures lists them",
    )
    group.add_argument(
        "--layers", metavar="LIST", help="layers to record, such as 0,2,-1 or 4-7 (all)"
    )


def add_map_options(group: Any, default: str) -> None:
    """Add the options that say which maps of visual tokens are kept.

    Parameters
    ----------
    group
        A group of options.
    default
        When the mean over heads is kept without being asked for.
    """
    maps = group.add_mutually_exclusive_group()
    maps.add_argument(
        "--visual_map",
        action="store_true",
        default=None,
        help=f"keep the weight of each visual token by step and layer, mean over heads ({default})",
    )
    maps.add_argument(
        "--no_visual_map", dest="visual_map", action="store_false", help="do not keep it"
    )
    group.add_argument(
        "--map_heads",
        metavar="LIST",
        help="also keep the weight of each visual token for single heads, named layer.head, such "
        "as 3.1,12.7",
    )


def add_output_options(group: Any, *formats: str) -> None:
    """Add the options that say where, and in what formats, results are written.

    ``formats`` are the names of the second option, ``--format`` when not given.
    """
    group.add_argument(
        "--save_folder",
        default="results",
        metavar="DIR",
        help="folder, or URL such as s3://bucket/folder with attnlens[stores] (results)",
    )
    group.add_argument(
        *(formats or ("--format",)),
        dest="formats",
        nargs="+",
        default=["png"],
        choices=("png", "pdf", "svg"),
        help="formats of the pictures (png)",
    )


def add_worker_options(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Add the options that say who does the work on the questions or answers of a file.

    ``model`` is whether that needs the model.
    """
    group = parser.add_argument_group(
        "with --data, many at a time" if model else "many answers at a time"
    )
    share = "each load the model and share the machine's GPUs or cores" if model else "share them"
    needs = "one GPU for each worker, or one CPU where it has no GPUs" if model else "a CPU each"
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that {share} (1; with --ray, as many as there is room for)",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help=f"a Ray cluster does the work, with {needs}: auto, HOST:PORT, ray://HOST:PORT, or "
        "local (needs attnlens[cluster])",
    )


def check_workers(options: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises
    ------
    InputError
        If the number is too small, there is no file of questions, other processes would not see
        what they are to read or write, or Ray is not installed.
    """
    for name in ("workers", "ray"):
        value = getattr(options, name)
        if value is not None and getattr(options, "data", options) is None:
            raise InputError(f"--{name} {value}: one question has one worker: give --data")
    if options.workers is not None:
        at_least("workers", options.workers, 1)
    if options.ray is not None or (options.workers or 1) > 1:
        for name in ("data", "images", "file", "traces", "save_folder"):
            value = getattr(options, name, None)
            if value is not None and is_of_one_process(value):
                option = "FILE" if name == "file" else f"--{name}"
                raise InputError(
                    f"{option} {value}: this is the memory of one process, which its workers do "
                    "not see: leave --workers and --ray out, or give another place"
                )
    if options.ray is not None:
        from attnlens.runs.workers.cluster import check_ray

        check_ray(options.ray)


def workers_of(
    options: argparse.Namespace, load: Callable[[Any], Any], settings: Any
) -> AbstractContextManager[Workers]:
    """Load the model where ``--workers`` and ``--ray`` say."""
    from attnlens.runs.workers import start_workers

    return start_workers(load, settings, count=options.workers, ray=options.ray)


def prompt_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return which model is asked, and in what words: fields of ``PromptSettings``.

    Raises
    ------
    InputError
        If the template's file cannot be read.
    """
    return {
        "mode": options.mode,
        "system": options.system,
        "template": None if options.template is None else _read_template(options.template),
        "min_pixels": options.min_pixels,
        "max_pixels": options.max_pixels,
        "model": options.model_path,
        "device": options.device,
        "dtype": options.dtype,
    }


def ask_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``AskSettings``; raises as ``prompt_options``."""
    return {**prompt_options(options), "max_new_tokens": options.max_new_tokens}


def intervention_options(options: argparse.Namespace, words: Iterable[str]) -> dict[str, Any]:
    """Return what is done to answers: the fields of ``InterventionSettings``.

    Parameters
    ----------
    options
        Those of the command.
    words
        What the prompts say around their questions: one text for each way to ask.

    Raises
    ------
    InputError
        If no trigger is given, and the prompts do not all ask for the same verification.
    """
    tags = {verification_tag(text) for text in words}
    when = options.when or (tags.pop() if len(tags) == 1 else None)
    if not when:
        raise InputError(
            "the prompts ask for no verification to act at, or for several: give --when, such as "
            "--when step:20"
        )
    return {
        "interventions": tuple(options.intervention),
        "when": when,
        "positions": options.positions or "fresh",
    }


def recording_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``RecordingSettings``; raises as ``prompt_options``."""
    return {
        **ask_options(options),
        "seed": options.seed,
        "temperature": options.temperature,
        **kept_options(options),
        "fps": getattr(options, "fps", None),
        "max_frames": getattr(options, "max_frames", None),
    }


def kept_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is recorded: the fields of ``KeptSettings``.

    Raises
    ------
    InputError
        If the layers or heads cannot be read.
    """
    return {
        "layers": parse_layers(options.layers),
        "visual_map": getattr(options, "visual_map", None),
        "map_heads": parse_heads(getattr(options, "map_heads", None)),
    }


def output_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return where, and in what formats, results are written."""
    return {
        "save_folder": options.save_folder,
        "formats": tuple(dict.fromkeys(options.formats)),
    }


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
            ends = int(first), int(last if dash else first)
        except ValueError as error:
            raise InputError(f"--layers {text!r}: give indices such as 0,2,-1 or 4-7") from error
        if ends[0] > ends[1]:
            raise InputError(f"--layers {text!r}: {piece!r} runs backwards, give {last}-{first}")
        layers += range(ends[0], ends[1] + 1)
    return layers


def parse_heads(text: str | None) -> list[tuple[int, int]] | None:
    """Read ``3.1,12.7`` into (layer, head) pairs, in order.

    Raises
    ------
    InputError
        If the text is none of these, or a head is given twice.
    """
    if text is None:
        return None
    heads: list[tuple[int, int]] = []
    for piece in text.split(","):
        layer, _, head = piece.strip().partition(".")
        if not all(part.isascii() and part.isdecimal() for part in (layer, head)):
            raise InputError(
                f"--map_heads {text!r}: {piece!r} is no head: name layer and head, such as 3.1,12.7"
            )
        heads.append((int(layer), int(head)))
    twice = next((one for one in heads if heads.count(one) > 1), None)
    if twice:
        name = ".".join(map(str, twice))
        raise InputError(f"--map_heads {text!r}: {name} is given twice: give each head once")
    return sorted(heads)


def _read_template(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"--template {path!r} cannot be read ({reason}): give a text file with {{question}} "
            "in it"
        ) from error
    text = text.removesuffix("\n")  # editors end a file with one
    try:
        check_template(text)
    except InputError as error:
        raise InputError(f"--template {path!r}: {error}") from error
    return text


def questions_of(options: argparse.Namespace) -> Collection[Question]:
    """Read the questions from the options ``image_path``, ``question`` and ``data``.

    ``video_path`` may stand in place of ``image_path``.
    """
    from attnlens.runs.dataset import Question, read_questions

    video = getattr(options, "video_path", None)
    if options.data is not None:
        if (options.image_path, video, options.question) != (None, None, None):
            raise InputError("--data brings its own images and questions: leave the others out")
        return read_questions(options.data)
    if video is not None and options.image_path is not None:
        raise InputError("--image_path and --video_path are given: give one of them")
    name, kind = ("image_path", "an image") if video is None else ("video_path", "a video")
    for needed in (name, "question"):
        if getattr(options, needed) is None:
            raise InputError(f"--{needed} is missing: give {kind} and a question, or --data")
    visual = getattr(options, name)
    return [Question(image=visual, text=options.question, is_video=video is not None)]


def one_process(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Keep other processes out of ``--save_folder``, except for a single question's results."""
    from attnlens.runs.cache import only_process

    if options.data is None and getattr(options, "traces", None) is None:
        return nullcontext()
    return only_process(located(options.save_folder))


def exit_status(command: str, skipped: int, failed: int) -> int:
    """Return 1 where lines of a file were left out, and print how many; else 0.

    Parameters
    ----------
    command
        Name of the command.
    skipped, failed
        Lines that could not be used, and questions that failed.
    """
    if not skipped and not failed:
        return 0
    left_out = [
        f"{count} {what}{'' if count == 1 else 's'} {how}"
        for count, what, how in ((skipped, "line", "skipped"), (failed, "question", "failed"))
        if count
    ]
    print(
        f"attnlens {command}: not in the results: {', '.join(left_out)} (see above)",
        file=sys.stderr,
    )
    return 1
