"""Questions about a scene, with their true answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

from attnlens.testbed.world.scenes import COLOURS, SHAPES, Scene, SceneObject, pick

if TYPE_CHECKING:
    import numpy as np

GROUPS = (*COLOURS, *SHAPES)
"""What can be counted: the objects of one colour or one shape."""

MAX_STEPS = 70
"""Longest chain."""

MAX_COUNTS = 8
"""Largest number of counts that a question asks for."""

MAX_VALUE = 20
"""Largest number reached within a chain."""


@dataclass(frozen=True)
class Step:
    """One step of a calculation: ``subtract`` or ``add`` the ``count`` objects of a group."""

    operation: str
    group: str
    count: int
    before: int
    after: int

    @property
    def words(self) -> str:
        """The step in words: "reds subtracted", "circles added"."""
        return f"{self.group}s {'added' if self.operation == 'add' else 'subtracted'}"


@dataclass(frozen=True)
class Question:
    r"""A question and its true answer.

    Attributes
    ----------
    kind
        A key of ``KINDS``.
    text
        The question in words.
    answer
        The true answer, as written inside ``\boxed{}``.
    subjects
        What it is about: groups ("red", "circle"), or the name of one object ("red circle").
    asked
        ``more`` or ``fewer`` in a ``comparison``, ``mark`` or ``size`` in an ``attribute``
        question, otherwise empty.
    steps
        The calculation, for ``subtraction`` and ``chain``.
    looks
        Number of verifications in a ``back`` answer: 1, or 2 if the text asks for it.
    counts
        How often the reasoning counts the objects: once, or as often as the text asks for.
    """

    kind: str
    text: str
    answer: str
    subjects: tuple[str, ...]
    asked: str = ""
    steps: tuple[Step, ...] = ()
    looks: int = 1
    counts: int = 1

    def look_twice(self) -> Question:
        """Return the question with a request to look at the image again twice."""
        return replace(self, text=f"{self.text} Look twice.", looks=2)

    def count_times(self, counts: int) -> Question:
        """Return the question with a request to count the objects several times."""
        return replace(self, text=f"{self.text} Count {counts} times.", counts=counts)


_SUBTRACTION = (
    "Subtract all {s}. How many objects are left?",
    "How many objects are left if all {s} are removed?",
    "Remove all {s}. How many objects remain?",
)
_EXISTENCE = ("Is there {s}?", "Does the image show {s}?", "Can you see {s}?")
_ATTRIBUTE = (
    "What {a} does the {s} have?",
    "What is the {a} of the {s}?",
    "Name the {a} of the {s}.",
)
_COMPARISON = (
    "Are there {m} {a} than {b}?",
    "Does the image show {m} {a} than {b}?",
    "Can you see {m} {a} than {b}?",
)
_CHAIN = (
    "Start with the number of objects: {s}. What is the result?",
    "Count the objects: {s}. What number is that?",
    "Take the number of objects: {s}. How much is it?",
)


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _group_name(group: str) -> str:
    return f"{group} objects" if group in COLOURS else f"{group}s"


def members(scene: Scene, group: str) -> tuple[SceneObject, ...]:
    """Return the objects of a group, in reading order."""
    return tuple(o for o in scene.objects if group in (o.colour, o.shape))


def _step(scene: Scene, operation: str, group: str, before: int) -> Step:
    count = len(members(scene, group))
    after = before - count if operation == "subtract" else before + count
    return Step(operation, group, count, before, after)


def subtraction(scene: Scene, rng: np.random.Generator) -> Question:
    """Remove a colour or a shape and count the rest, as in CLEVR-Math."""
    group = pick(rng, GROUPS)
    step = _step(scene, "subtract", group, len(scene.objects))
    return Question(
        kind="subtraction",
        text=pick(rng, _SUBTRACTION).format(s=_group_name(group)),
        answer=str(step.after),
        subjects=(group,),
        steps=(step,),
    )


def existence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether an object is there; in half of the questions it is."""
    if scene.objects and rng.random() < 0.5:
        name = pick(rng, scene.objects).name
    else:
        name = pick(rng, scene.absent_names)
    return Question(
        kind="existence",
        text=pick(rng, _EXISTENCE).format(s=f"{_article(name)} {name}"),
        answer="yes" if name in scene.by_name else "no",
        subjects=(name,),
    )


def attribute(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the mark or the size of an object; in an empty scene, ask for existence."""
    if not scene.objects:
        return existence(scene, rng)
    o = pick(rng, scene.objects)
    asked = pick(rng, ("mark", "size"))
    return Question(
        kind="attribute",
        text=pick(rng, _ATTRIBUTE).format(a=asked, s=o.name),
        answer=o.mark if asked == "mark" else o.size,
        subjects=(o.name,),
        asked=asked,
    )


def comparison(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether one group has more, or fewer, objects than another.

    Half of the answers are "yes". Half of the rest compare equal numbers, if the scene has two
    non-empty groups of the same size.
    """
    counts = {group: len(members(scene, group)) for group in GROUPS}
    asked = pick(rng, ("more", "fewer"))
    right = 1 if asked == "more" else -1
    relation = right if rng.random() < 0.5 else pick(rng, (0, -right))
    pairs = [pair for pair in permutations(GROUPS, 2) if any(counts[group] for group in pair)]
    related = [pair for pair in pairs if _relation(counts, *pair) == relation]
    first, second = pick(rng, tuple(related or pairs or permutations(GROUPS, 2)))
    yes = _relation(counts, first, second) == right
    text = pick(rng, _COMPARISON).format(m=asked, a=_group_name(first), b=_group_name(second))
    return Question(
        kind="comparison",
        text=text,
        answer="yes" if yes else "no",
        subjects=(first, second),
        asked=asked,
    )


def _relation(counts: dict[str, int], first: str, second: str) -> int:
    return (counts[first] > counts[second]) - (counts[first] < counts[second])


def chain(scene: Scene, rng: np.random.Generator, length: int | None = None) -> Question:
    """Subtract and add groups one after the other in ``length`` steps, by default two or three.

    A group is repeated only after all the others have had their turn. The value stays between 0
    and ``MAX_VALUE``.
    """
    value = len(scene.objects)
    steps: list[Step] = []
    for i in range(int(rng.integers(2, 4)) if length is None else length):
        if i % len(GROUPS) == 0:
            order = rng.permutation(len(GROUPS))
        group = GROUPS[int(order[i % len(GROUPS)])]
        step = _step(scene, pick(rng, ("subtract", "add")), group, value)
        if not 0 <= step.after <= MAX_VALUE:
            other = "add" if step.operation == "subtract" else "subtract"
            step = _step(scene, other, group, value)
        steps.append(step)
        value = step.after
    listed = ", ".join(step.words for step in steps)
    return Question(
        kind="chain",
        text=pick(rng, _CHAIN).format(s=listed),
        answer=str(value),
        subjects=tuple(step.group for step in steps),
        steps=tuple(steps),
    )


KINDS: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    "subtraction": subtraction,
    "existence": existence,
    "attribute": attribute,
    "comparison": comparison,
    "chain": chain,
}
"""Functions that make a question of each kind."""


def draw_question(
    scene: Scene, rng: np.random.Generator, kind: str, steps: int | None = None
) -> Question:
    """Make a question of a kind; ``steps`` is the length of a ``chain``."""
    return chain(scene, rng, steps) if kind == "chain" else KINDS[kind](scene, rng)
