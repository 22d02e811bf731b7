"""Answers of another engine, each fed again and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.modes import MESSAGES, mode_of
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question, check_questions
from attnlens.runs.provenance import provenance
from attnlens.runs.recordings import TRACE
from attnlens.runs.responses import Asked, Response
from attnlens.runs.responses.base import digest
from attnlens.runs.settings import ReplaySettings
from attnlens.runs.spool import Lazy, Spool
from attnlens.runs.workers import Workers
from attnlens.text import counted, shortened

if TYPE_CHECKING:
    from attnlens.interventions.base import Intervention
    from attnlens.models.load import VLM
    from attnlens.recording.trace import Trace

OPTIONS = ("mode", "system", "template", "min_pixels", "max_pixels")
"""Options in whose place a file may tell how its questions were asked."""
MOST_TOLD = 10
"""How many values of an option are looked at in a message."""


def question_of(response: Response) -> Question:
    """Return the question of an answer, with a ``problem`` where it cannot be replayed."""
    question = response.question
    problem = question.problem
    if not problem and not question.image:
        problem = (
            "names no picture: give --images with a folder where a picture is named after the id "
            f"{shortened(response.id, 80)!r}, or --image_column"
            if response.has_id
            else "names no picture: give each record an 'image' or an 'id' (with --images, the "
            "folder where its picture is named after that)"
        )
    if not problem and not response.text and not response.token_ids:
        problem = "the answer is empty: there is nothing to replay"
    return replace(question, problem=problem)


def settings_of(response: Response, settings: ReplaySettings) -> ReplaySettings:
    """Return how an answer's question was asked: as the file tells, else as the settings say."""
    asked = response.asked
    told = {name: getattr(asked, name) for name in OPTIONS if getattr(asked, name) is not None}
    if _is_whole(asked):
        told |= {"mode": MESSAGES, "system": None, "template": None}
        return replace(settings, **told, messages=asked.messages, prompt_text=asked.prompt)
    if "template" in told:
        # vlm.prompt takes the white space around a question away
        text = response.question.text
        start, stop = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        told["template"] = told["template"].replace("{question}", f"{start}{{question}}{stop}")
    return replace(settings, **told, resized_first=asked.resized_first)


def assumed(
    responses: Iterable[Response], settings: ReplaySettings, given: Mapping[str, Any]
) -> list[str]:
    """Say what a file does not tell, and what is taken in its place.

    Parameters
    ----------
    responses
        Answers of the file.
    settings
        What is taken.
    given
        Those of ``OPTIONS`` that the user has given.

    Raises
    ------
    InputError
        If the file tells otherwise than an option.
    """
    usable = unknown = 0
    untold: set[str] = set()
    versions: set[str] = set()
    told: dict[str, set[Any]] = {name: set() for name in OPTIONS}
    only_templates = True  # where the mode is not told
    for one in responses:
        if one.question.problem:
            continue
        usable += 1
        unknown += one.finished is None and one.token_ids is None
        untold.update(name for name in OPTIONS if _is_open(one.asked, name))
        if one.asked.version is not None:
            versions.add(one.asked.version)
        if _is_open(one.asked, "mode"):
            only_templates = only_templates and one.asked.template is not None
        for name, values in told.items():
            if len(values) < MOST_TOLD:
                values.add(getattr(one.asked, name))
    for name, value in given.items():
        if usable and name not in untold and told[name] != {value}:
            shown = shortened(", ".join(map(repr, sorted(told[name] - {None}, key=str))), 80)
            says = f"says {shown}" if shown else "has whole prompts"
            raise InputError(f"--{name} {value!r}: the file {says}, so leave the option out")
    origin = {
        name: f"--{name}" if name in given else f"the default of --{name}" for name in OPTIONS
    }
    found = []
    if "mode" in untold:
        use = (
            "results are named after"
            if only_templates
            else "the questions were asked in the words of"
        )
        names = ""
        if versions:
            names = (
                f"; config names version {', '.join(sorted(versions))} and no system_prompt, so "
                "the file's own words are not known"
            )
        found.append(f"{use} mode {settings.mode} ({origin['mode']}){names}")
    if "template" in untold and settings.template is not None:
        found.append(f"the questions were asked in the words of {origin['template']}")
    if "system" in untold:
        own = mode_of(settings.mode).system if settings.system is None else settings.system
        found.append(f"the system prompt was {shortened(own, 80)!r} ({origin['system']})")
    for name, what in (("min_pixels", "smallest"), ("max_pixels", "largest")):
        if name in untold:
            value = getattr(settings, name)
            area = "the checkpoint's own" if value is None else f"{value:,} pixels"
            found.append(f"the {what} area of a picture was {area} ({origin[name]})")
    if unknown:
        found.append(
            f"{unknown} of {counted(usable, 'answer')} may have been cut: no end token is fed "
            "after the text"
        )
    return found


def _is_whole(asked: Asked) -> bool:
    """Whether the whole prompt is known."""
    return asked.messages is not None or asked.prompt is not None


def _is_open(asked: Asked, name: str) -> bool:
    """Whether the value of one of ``OPTIONS`` has to be assumed."""
    if getattr(asked, name) is not None:
        return False
    if name in ("min_pixels", "max_pixels"):
        return not asked.resized_first
    return not _is_whole(asked) and (name == "mode" or asked.mode is None)


def replay_one(
    vlm: VLM,
    response: Response,
    settings: ReplaySettings,
    intervention: Intervention | None = None,
) -> Trace:
    """Feed an answer again and record it.

    ``trace.attrs["replayed"]`` also has ``same_prompt`` where the file has the ids of the prompt,
    and ``resized_first``, the limits to which the engine's picture had been resized.

    Parameters
    ----------
    vlm, response, settings
        The model, what was answered, and how it was asked.
    intervention
        What acts meanwhile, as in ``attnlens.replay``.
    """
    from attnlens.experiments.force import decoded, drift, replay

    prompt = settings.prompt(vlm, response.question)
    tokens = response.text if response.token_ids is None else response.token_ids
    trace = replay(
        vlm,
        prompt,
        tokens,
        intervention,
        finished=response.finished,
        layers=settings.layers,
        visual_map=settings.keeps_map(response.question),
        map_heads=settings.map_heads,
    )
    replayed = trace.attrs["replayed"]
    if response.token_ids is not None and response.text:
        # engines leave special tokens out of the text unless they are told otherwise
        replayed["drift"] = min(
            drift(response.text, decoded(vlm, response.token_ids, special=special))
            for special in (False, True)
        )
    if settings.resized_first:
        replayed["resized_first"] = [settings.min_pixels, settings.max_pixels]
    if response.prompt_digest:
        ids = prompt.inputs["input_ids"][0].tolist()
        replayed["same_prompt"] = digest(ids) == response.prompt_digest
    return trace


def replay_each(
    workers: Workers,
    responses: Collection[Response],
    settings: ReplaySettings,
    root: Path,
    *,
    command: str,
) -> Collection[Run]:
    """Replay the answers of a file that are not there yet.

    Parameters
    ----------
    workers, responses, settings
        Who replays, the answers, and how they were asked where they do not tell.
    root
        Each trace goes into ``MODE/LINE_IMAGE/trace.zarr`` there.
    command
        Name of the command, for messages.

    Returns
    -------
    collection of Run
        One for each answer that could be replayed; its entry holds the trace.
    """
    model = workers.model

    def run_of(response: Response) -> Run:
        question, own = response.question, settings_of(response, settings)
        entry = Entry(
            root / own.mode / question.folder,
            provenance(question, own, model) | {"replayed": _identity(response)},
        )
        return Run(question, own, entry, partial(_replay, response, own))

    runs = Lazy(lambda: map(run_of, responses), len(responses))
    return make_each(runs, workers, command=command)


def _replay(response: Response, settings: ReplaySettings, vlm: VLM, folder: Path) -> None:
    replay_one(vlm, response, settings).save(folder / TRACE)


def _identity(response: Response) -> dict[str, Any]:
    """Return what a replay follows from besides the question."""
    return {
        "text_sha256": hashlib.sha256(response.text.encode()).hexdigest(),
        "tokens": None if response.token_ids is None else digest(response.token_ids),
        "prompt": response.prompt_digest,
        "finished": response.finished,
    }


def check_responses(responses: Spool[Response]) -> tuple[Collection[Response], int]:
    """Open the picture of each answer, as ``check_questions`` does.

    Returns
    -------
    tuple
        The answers that can be replayed, each with the hash of its picture, and how many cannot.
    """
    asked = Lazy(lambda: map(question_of, responses), len(responses))
    good, skipped = check_questions(asked)

    def answered() -> Iterator[Response]:
        left = iter(responses)
        for question in good:
            response = next(one for one in left if one.question.line == question.line)
            yield replace(response, question=question)

    return Lazy(answered, len(good)), skipped
