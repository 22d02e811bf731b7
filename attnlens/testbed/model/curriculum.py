"""What training asks, and when: short questions about what is seen first, whole answers later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from attnlens.models.modes import user_text
from attnlens.testbed.world.answers import (
    Part,
    facts,
    listing,
    presence,
    tally,
    working,
    write_answer,
)
from attnlens.testbed.world.questions import MAX_STEPS, draw_question
from attnlens.testbed.world.samples import Sample, make_sample
from attnlens.testbed.world.scenes import MAX_OBJECTS, Scene, pick_by_share, random_scene

KIND_SHARES: dict[str, float] = {
    "subtraction": 0.1,
    "existence": 0.17,
    "attribute": 0.25,
    "comparison": 0.18,
    "chain": 0.3,
}
"""How often each kind of question is asked at first. (Scoring asks all of them equally often.)"""

MODE_SHARES = {"back": 0.4, "cot": 0.25, "reflection": 0.35}
INSERTION_SHARES = {
    "back": {"none": 0.8, "all": 0.1, "part": 0.1},
    "reflection": {"none": 0.25, "all": 0.45, "part": 0.3},
}
"""How often which visual tokens are inserted before the tag of a verification."""


@dataclass(frozen=True)
class Stage:
    """What training asks from a step on.

    Attributes
    ----------
    first
        The step.
    kinds
        How often each kind of question is asked, in the order of ``KIND_SHARES``.
    long_every
        Every step with a number divisible by this one, counted from 1, has long chains.
    decision_weight
        Weight in the loss, also in the one that is logged, of the tokens of
        ``batches.DECISIONS``; all others have weight 1.
    lone_marks
        Of the pieces that hide the image from predictable words (``batches.HIDDEN_SHARE``), the
        share that hides it from the steps of sizes too; those are then not learned. A mark comes
        right after the size, and the size's step can look up both. Here only the mark's own step
        can.
    """

    first: int
    kinds: tuple[float, ...]
    long_every: int = 12
    decision_weight: float = 1.0
    lone_marks: float = 0.0


STAGES = (
    Stage(0, tuple(KIND_SHARES.values()), long_every=10, decision_weight=3.0),
    Stage(3000, (0.1, 0.2, 0.32, 0.18, 0.2), long_every=10, decision_weight=3.0),
    Stage(4800, (0.1, 0.2, 0.32, 0.18, 0.2), 10, decision_weight=3.0, lone_marks=0.75),
)
"""Stages of the shipped weights. Chains take the longest to learn, so they come often early on."""


@dataclass(frozen=True)
class Example:
    """The contents of one row of a batch: a picture, the user's text, the answer.

    ``kept`` are the visual tokens, in reading order, that are inserted before each of
    ``VERIFICATION_TAGS``. If it is empty, nothing is inserted.
    """

    scene: Scene
    text: str
    parts: list[Part]
    kept: tuple[int, ...] = ()


def perception_example(
    rng: np.random.Generator,
    grid: str | None = None,
    kinds: Mapping[str, float] = KIND_SHARES,
) -> Example:
    """Ask a short question about a random scene, which teaches the model to see.

    ``grid`` is as in ``random_scene``, ``kinds`` how often each kind of question is asked.
    """
    scene = random_scene(rng, objects=_few_or_many(rng), grid=grid)
    choice = rng.random()
    if choice < 0.2:
        stated = _as_verification(facts(scene, named=False))
        return Example(scene, "List all objects with size and mark.", stated)
    if choice < 0.5 and scene.objects:
        # out of order, so the model finds a fact by the object's name and not by its turn
        order = rng.permutation(len(scene.objects))[: int(rng.integers(1, 9))].tolist()
        names = ", ".join(scene.objects[i].name for i in order)
        stated = _as_verification(facts(scene, order=order))
        return Example(scene, f"Size and mark of {names}.", stated)
    if choice < 0.6:
        named = _present_and_absent(rng, scene)
        return Example(scene, f"Present or absent: {', '.join(named)}.", presence(scene, named))
    if choice < 0.67:
        return Example(scene, "List all objects.", listing(scene))
    if choice < 0.8:
        counts = tally(scene, must_look=True)
        return Example(scene, "Count the objects by colour and by shape.", counts)
    kind = pick_by_share(rng, kinds)
    if choice < 0.95:
        question = draw_question(scene, rng, kind, steps=int(rng.integers(2, 11)))
        parts = [Part(f" Total {len(scene.objects)}:"), *working(scene, question, looked=True)]
        return Example(scene, f"{question.text}\nWork it out.", parts)
    question = draw_question(scene, rng, kind)
    answer = write_answer(scene, question, "normal")
    return Example(scene, user_text(question.text, "normal"), answer)


def answer_example(rng: np.random.Generator, grid: str, kinds: Mapping[str, float]) -> Example:
    """Ask a question with its whole answer; one time in four, a short question instead."""
    if rng.random() < 0.25:
        return perception_example(rng, grid, kinds)
    mode, kind = pick_by_share(rng, MODE_SHARES), pick_by_share(rng, kinds)
    steps = int(rng.integers(2, 9)) if kind == "chain" else None
    objects = _few_or_many(rng) if rng.random() < 0.15 else None
    sample = make_sample(rng, mode, kind=kind, objects=objects, grid=grid, steps=steps)
    return with_insertion(rng, sample)


def long_example(rng: np.random.Generator, grid: str, kinds: Mapping[str, float]) -> Example:
    """Ask a chain of 9 to ``MAX_STEPS`` steps; ``kinds`` is not used."""
    mode = pick_by_share(rng, MODE_SHARES)
    steps = int(9 * (MAX_STEPS / 9) ** rng.random())  # uniform on a logarithmic scale
    sample = make_sample(rng, mode, grid=grid, kind="chain", steps=steps, counts=1)
    return with_insertion(rng, sample)


def with_insertion(rng: np.random.Generator, sample: Sample) -> Example:
    """Insert none, all or a part of the visual tokens, as ``INSERTION_SHARES`` has it."""
    text, parts = user_text(sample.question.text, sample.mode), list(sample.parts)
    inserted = pick_by_share(rng, INSERTION_SHARES.get(sample.mode, {"none": 1.0}))
    if inserted == "none":
        return Example(sample.scene, text, parts)
    count = sample.scene.rows * sample.scene.columns
    kept = np.arange(count)
    if inserted == "part":
        kept = np.sort(rng.permutation(count)[: int(rng.integers(1, count))])
    return Example(sample.scene, text, parts, tuple(kept.tolist()))


def _few_or_many(rng: np.random.Generator) -> int:
    """Choose a number of objects: one alone teaches its attributes, several teach the search."""
    choice = rng.random()
    if choice < 0.03:
        return 0
    if choice < 0.35:
        return 1
    return int(rng.integers(2, 4) if choice < 0.55 else rng.integers(4, MAX_OBJECTS + 1))


def _as_verification(parts: list[Part]) -> list[Part]:
    return [replace(part, section="verification") for part in parts]


def _present_and_absent(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Choose two to eight names, each of an object that is there with a probability of one half."""
    there, absent = (
        list(rng.permutation(names)) for names in (list(scene.by_name), scene.absent_names)
    )
    names = []
    for _ in range(int(rng.integers(2, 9))):
        source = there if there and rng.random() < 0.5 else absent
        names.append(str(source.pop()))
    return names
