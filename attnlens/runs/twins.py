"""Forced twins of replayed answers: the same tokens under an intervention, each kept once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attnlens.models.images import open_image
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.recordings import INTERVENED, TRACE
from attnlens.runs.replays import replay_one
from attnlens.runs.responses import Response
from attnlens.runs.settings import InterventionSettings, ReplaySettings
from attnlens.runs.spool import Lazy
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
        The traces that twins compare with, by line.
    acting
        By the name of the intervention, the twins, by line.
    """

    untouched: Collection[Run]
    acting: Mapping[str, Collection[Run]]

    def together(self) -> Iterator[tuple[Run, dict[str, Entry]]]:
        """Give each untouched answer with the entries of the twins that it has."""
        left = {name: iter(runs) for name, runs in self.acting.items()}
        heads = {name: next(runs, None) for name, runs in left.items()}
        for run in self.untouched:
            found = {}
            for name, runs in left.items():
                head = heads[name]
                while head is not None and (head.question.line or 0) < (run.question.line or 0):
                    head = next(runs, None)
                if head is not None and head.question == run.question:
                    found[name] = head.entry
                heads[name] = head
            yield run, found


def twin_each(
    workers: Workers,
    recorded: Collection[Run],
    responses: Collection[Response],
    interventions: InterventionSettings,
    root: Path,
) -> Twins:
    """Feed replayed answers again under each intervention, where that has not been done yet.

    Parameters
    ----------
    workers
        Who replays.
    recorded
        The untouched replays.
    responses
        The answers, in the same order; some may not have been replayed.
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
        folder = f"{INTERVENED}/{_folder_name(name)}"
        made[name] = make_each(
            Lazy(partial(_runs, recorded, responses, one, root, folder, follows), len(recorded)),
            workers,
            command=f"replay ({name})",
        )
    return Twins(made.pop(NOTHING, recorded), made)


def _runs(
    recorded: Collection[Run],
    responses: Collection[Response],
    interventions: InterventionSettings,
    root: Path,
    folder: str,
    follows: Mapping[str, Any],
) -> Iterator[Run]:
    left = iter(responses)
    for run in recorded:
        question, settings = run.question, cast("ReplaySettings", run.settings)
        response = next(one for one in left if one.question == question)
        entry = Entry(
            root / f"{settings.mode}{folder}" / question.folder,
            {**run.entry.settings, **follows},
        )
        yield Run(question, settings, entry, partial(_twin, response, settings, interventions))


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


def twins_beside(trace: Path) -> Iterator[tuple[str, Path]]:
    """Give names and traces of the twins that ``twin_each`` made of a replayed answer, sorted.

    One under a name that ``_folder_name`` hashed has that hash in its name.
    """
    folder = trace.parent
    made = folder.parent.with_name(folder.parent.name + INTERVENED)
    for twin in sorted(made.glob(f"*/{folder.name}/{TRACE}")):
        yield twin.parent.parent.name.replace("=", ":"), twin


def _folder_name(name: str) -> str:
    """Return the name of an intervention's folder: its own, or a hash where that has other signs.

    Two interventions have two folders, also where a file system takes A for a.
    """
    if re.fullmatch(r"[a-z0-9:.+-]{1,60}", name):
        return name.replace(":", "=")
    return f"{name.partition(':')[0]}={hashlib.sha256(name.encode()).hexdigest()[:16]}"
