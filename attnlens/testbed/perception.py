"""Short questions that teach the model to see before it learns to answer at length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from attnlens.models.modes import user_text
from attnlens.testbed.answers import (
    Part,
    facts,
    listing,
    presence,
    tally,
    working,
    write_answer,
)
from attnlens.testbed.draws import pick_by_share
from attnlens.testbed.questions import draw_question
from attnlens.testbed.scenes import COLOURS, MAX_OBJECTS, SHAPES, Scene, random_scene

if TYPE_CHECKING:
    import numpy as np

FACTS_QUESTION = "List all objects with size and mark."
ASKED_QUESTION = "Size and mark of {names}."
PRESENCE_QUESTION = "Present or absent: {names}."
LIST_QUESTION = "List all objects."
TALLY_QUESTION = "Count the objects by colour and by shape."
WORK_SUFFIX = "\nWork it out."
KIND_SHARES: dict[str, float] = {
    "subtraction": 0.1,
    "existence": 0.17,
    "attribute": 0.25,
    "comparison": 0.18,
    "chain": 0.3,
}
"""How often training asks each kind at first; scoring asks all alike."""


def few_or_many(rng: np.random.Generator) -> int:
    """Draw a number of objects: one alone teaches its attributes, many teach the search."""
    draw = rng.random()
    if draw < 0.03:
        return 0
    if draw < 0.35:
        return 1
    return int(rng.integers(2, 4) if draw < 0.55 else rng.integers(4, MAX_OBJECTS + 1))


def perception_example(
    rng: np.random.Generator,
    grid: str | None = None,
    kinds: Mapping[str, float] = KIND_SHARES,
) -> tuple[Scene, str, list[Part]]:
    """Draw a scene, the user's text and a short answer.

    Parameters
    ----------
    rng
        Source of randomness.
    grid
        Size class of the scene; see ``random_scene``.
    kinds
        How often each kind of question is asked, where one is.
    """
    scene = random_scene(rng, objects=few_or_many(rng), grid=grid)
    draw = rng.random()
    if draw < 0.2:
        return scene, FACTS_QUESTION, _as_verification(facts(scene, named=False))
    if draw < 0.5 and scene.objects:
        # asked for out of order, so that a fact is found by what the object is, not by its turn
        order = rng.permutation(len(scene.objects))[: int(rng.integers(1, 9))].tolist()
        names = ", ".join(scene.objects[i].name for i in order)
        stated = _as_verification(facts(scene, order=order))
        return scene, ASKED_QUESTION.format(names=names), stated
    if draw < 0.6:
        named = _some_there(rng, scene)
        return scene, PRESENCE_QUESTION.format(names=", ".join(named)), presence(scene, named)
    if draw < 0.67:
        return scene, LIST_QUESTION, listing(scene)
    if draw < 0.8:
        return scene, TALLY_QUESTION, tally(scene, must_look=True)
    kind = pick_by_share(rng, kinds)
    if draw < 0.95:
        question = draw_question(scene, rng, kind, steps=int(rng.integers(2, 11)))
        parts = [Part(f" Total {len(scene.objects)}:"), *working(scene, question, looked=True)]
        return scene, question.text + WORK_SUFFIX, parts
    question = draw_question(scene, rng, kind)
    return scene, user_text(question.text, "normal"), write_answer(scene, question, "normal")


def _as_verification(parts: list[Part]) -> list[Part]:
    return [replace(part, section="verification") for part in parts]


def _some_there(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Draw two to eight names, each of an object that is there half of the time."""
    there = list(scene.by_name)
    absent = [n for n in (f"{c} {s}" for c in COLOURS for s in SHAPES) if n not in scene.by_name]
    there, absent = (list(rng.permutation(names)) for names in (there, absent))
    names = []
    for _ in range(int(rng.integers(2, 9))):
        source = there if there and rng.random() < 0.5 else absent
        names.append(str(source.pop()))
    return names
