"""Recorded answers: of one question, or of every line of a file."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.models.modes import MESSAGES, MODE_NAMES
from attnlens.recording.store import DEPENDENCE, RECOVERY, stored_kind
from attnlens.recording.trace import Trace
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import provenance
from attnlens.runs.spool import Lazy
from attnlens.runs.workers import Workers

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.runs.settings import RecordingSettings, ReplaySettings

TRACE = "trace.zarr"
"""Name of the trace in an entry."""
SUMMARY = "summary.json"
"""Name of the file that holds the question, the answer and the measures."""
TWINS, INTERVENED, ANSWERS, LONG = "_twins", "_interventions", "_answers", "long"
"""Folders of traces that are not runs to be averaged: the endings of the names of those of forced
twins (with more and more visual tokens; under interventions) and of sampled answers, and the name
of that of long answers."""


def load_for(settings: RecordingSettings | ReplaySettings) -> VLM:
    """Load the model, and refuse layers and heads that it lacks before a question is asked."""
    from attnlens.models.families import parts_of
    from attnlens.recording.maps import choose_heads
    from attnlens.recording.record import choose_layers

    vlm = settings.load()
    parts = parts_of(vlm.model)
    layers = choose_layers(settings.layers, parts.layer_count, parts.without_attention)
    choose_heads(settings.map_heads, layers, parts.head_count)
    return vlm


def record_one(
    vlm: VLM, question: Question, settings: RecordingSettings, *, alone: bool = False
) -> Trace:
    """Ask one question and record the answer.

    Parameters
    ----------
    vlm, question, settings
        The model, what is asked, and how.
    alone
        Whether this is the only question: its answer is printed while it is generated, and where
        the settings leave that open, its visual map is kept while it is small.
    """
    from attnlens.experiments.run import run

    by_size = alone and settings.visual_map is None and not question.is_video
    options: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        # a checkpoint's own top_k or top_p would cut what the temperature spreads
        options = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
    if alone:
        from attnlens.runs.printed_answer import PrintedAnswer

        options["streamer"] = PrintedAnswer(vlm.tokenizer)
    return run(
        vlm,
        settings.prompt(vlm, question),
        settings.max_new_tokens,
        seed=settings.seed,
        layers=settings.layers,
        visual_map=None if by_size else settings.keeps_map(question),
        map_heads=settings.map_heads,
        **options,
    )


def record_each(
    workers: Workers,
    questions: Collection[Question],
    settings: RecordingSettings,
    root: Path,
    *,
    command: str,
) -> Collection[Run]:
    """Record the answers to the questions of a file that are not there yet.

    Parameters
    ----------
    workers, questions, settings
        Who asks, what is asked, and how.
    root
        Each trace goes into ``MODE/LINE_IMAGE/trace.zarr`` there.
    command
        Name of the command, for messages.

    Returns
    -------
    collection of Run
        One for each question that could be answered; its entry holds the trace.
    """
    model = workers.model
    folder = root / settings.mode

    def run_of(question: Question) -> Run:
        entry = Entry(folder / question.folder, provenance(question, settings, model))
        return Run(question, settings, entry, partial(_record, question, settings))

    runs = Lazy(lambda: map(run_of, questions), len(questions))
    return make_each(runs, workers, command=command)


def _record(question: Question, settings: RecordingSettings, vlm: VLM, folder: Path) -> None:
    record_one(vlm, question, settings).save(folder / TRACE)


def read_trace(entry: Entry) -> Trace:
    """Load the trace of an entry.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    with entry.reading() as folder:
        return Trace.load(folder / TRACE)


def find_runs(root: Path) -> list[Path]:
    """Return the traces (``*.zarr``) at any depth of a folder that are runs to be averaged, sorted.

    Recoveries, dependences, folders of twins, sampled and long answers, and hidden folders, which a
    killed process may leave, are left out. A trace that a command has named after a mode is a run
    in any folder.
    """
    found = []
    for path in root.rglob("*.zarr"):
        above = path.relative_to(root).parts[:-1]
        hidden = any(part.startswith(".") for part in (*above, path.name))
        apart = not is_run(path.name) and any(map(_is_apart, above))
        if not path.is_dir() or hidden or apart:
            continue
        if stored_kind(path) not in (RECOVERY.format, DEPENDENCE.format):
            found.append(path)
    return sorted(found)


def is_run(name: str) -> bool:
    """Whether ``attnlens trend`` gives this name to the trace of a mode."""
    return any(name == f"{mode}_{TRACE}" for mode in MODE_NAMES)


def _is_apart(name: str) -> bool:
    """Whether a folder of this name holds traces that belong to runs."""
    modes, endings = (*MODE_NAMES, MESSAGES), (TWINS, INTERVENED, ANSWERS)
    return name == LONG or any(name == mode + ending for mode in modes for ending in endings)
