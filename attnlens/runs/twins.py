"""Forced twins of replayed answers: the same tokens under an intervention, each kept once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnlens.models.images import open_image
from attnlens.runs.cache import Entry, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.recordings import INTERVENED, TRACE
from attnlens.runs.replays import replay_one
from attnlens.runs.responses import Response
from attnlens.runs.settings import InterventionSettings, ReplaySettings
from attnlens.runs.workers import Workers

if TYPE_CHECKING:
    from attnlens.models.load import VLM

NOTHING = "nothing"
"""Name of the twin that is untouched."""


@dataclass(frozen=True)
class Twins:
    """Replayed answers and their forced twins.

    Attributes
    ----------
    untouched
        Entries of the traces that twins compare with.
    acting
        By the name of the intervention, entries of the twins.
    """

    untouched: Mapping[Question, Entry]
    acting: Mapping[str, Mapping[Question, Entry]]

    @property
    def complete(self) -> set[Question]:
        """Questions of which no trace is missing."""
        return set(self.untouched).intersection(*self.acting.values())


def twin_each(
    workers: Workers,
    recorded: Mapping[Question, Entry],
    responses: Mapping[Question, Response],
    settings: Mapping[Question, ReplaySettings],
    interventions: InterventionSettings,
    root: Path,
) -> Twins:
    """Feed replayed answers again under each intervention, where that has not been done yet.

    Parameters
    ----------
    workers
        Who replays.
    recorded
        Entries of the untouched replays.
    responses, settings
        The answers by question, and how each was asked.
    interventions
        What is done to them.
    root
        Each trace goes into ``MODE_interventions/INTERVENTION/LINE_IMAGE/trace.zarr`` there. In
        half precision there is also ``MODE_interventions/nothing/``, which is then compared with,
        since the tokens of twins go one by one (``attnlens.replay``).
    """
    both = zip(interventions.interventions, interventions.parsed(), strict=True)
    chosen = {one.name: replace(interventions, interventions=(text,)) for text, one in both}
    if workers.model["dtype"] != "float32":
        chosen = {NOTHING: InterventionSettings(interventions=()), **chosen}
    made = {}
    for name, one in chosen.items():
        pictures = {path: open_image(path)[1].sha256 for path in one.pictures()}
        follows = {"intervention": {**asdict(one), "pictures": pictures}}
        entries = {
            question: Entry(
                root
                / f"{settings[question].mode}{INTERVENED}"
                / _folder_name(name)
                / question.folder,
                {**run.settings, **follows},
            )
            for question, run in recorded.items()
        }

        def make(question: Question, one: InterventionSettings = one) -> partial[None]:
            # with the hash of its picture
            response = replace(responses[question], question=question)
            return partial(_twin, response, settings[question], one)

        there = make_each(entries, make, workers, command=f"replay ({name})")
        made[name] = {question: entries[question] for question in there}
    return Twins(made.pop(NOTHING, recorded), made)


def _twin(
    response: Response,
    settings: ReplaySettings,
    interventions: InterventionSettings,
    vlm: VLM,
    folder: Path,
) -> None:
    from attnlens.interventions.base import Nothing

    (intervention,) = interventions.parsed() or [Nothing()]
    replay_one(vlm, response, settings, intervention).save(folder / TRACE)


def _folder_name(name: str) -> str:
    """Return the name of an intervention's folder: its own, or a hash where that has other signs.

    Two interventions have two folders, also where a file system takes A for a.
    """
    if re.fullmatch(r"[a-z0-9:.+-]{1,60}", name):
        return name.replace(":", "=")
    return f"{name.partition(':')[0]}={hashlib.sha256(name.encode()).hexdigest()[:16]}"
