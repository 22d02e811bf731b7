"""Questions about a scene, with their true answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

from attnlens.testbed.draws import pick
from attnlens.testbed.scenes import COLOURS, SHAPES, Scene, SceneObject

if TYPE_CHECKING:
    import numpy as np

GROUPS = (*COLOURS, *SHAPES)
"""What can be counted: objects of one colour, or of one shape."""

MAX_STEPS = 70
"""Most steps of a chained question."""

MAX_COUNTS = 8
"""Most times that a question asks for the objects to be counted."""

MAX_VALUE = 20
"""Largest number that a chained question reaches on its way."""


@dataclass(frozen=True)
class Step:
    """One step of a calculation: a group of objects is subtracted or added.

    Attributes
    ----------
    operation
        ``subtract`` or ``add``.
    group
        One of ``GROUPS``.
    count
        How many objects of the scene belong to the group.
    before, after
        The number before and after the step.
    """

    operation: str
    group: str
    count: int
    before: int
    after: int

    @property
    def words(self) -> str:
        """What is done: "reds subtracted", "circles added"."""
        return f"{self.group}s {'added' if self.operation == 'add' else 'subtracted'}"


@dataclass(frozen=True)
class Question:
    r"""A question with what is needed to answer it.

    Attributes
    ----------
    kind
        A key of ``KINDS``.
    text
        The words.
    answer
        The true answer, as it stands inside ``\boxed{}``.
    subjects
        What is asked about: groups ("red", "circle"), or one object's name ("red circle").
    asked
        ``comparison``: ``more`` or ``fewer``. ``attribute``: ``mark`` or ``size``. Else empty.
    steps
        The calculation of ``subtraction`` and ``chain``.
    looks
        How many verifications a ``back`` answer makes; 2 where the text asks for them.
    counts
        How many times the reasoning counts the objects; more than once where the text asks for it.
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
        """Return the same question with the wish that the image be looked at again twice."""
        return replace(self, text=f"{self.text} Look twice.", looks=2)

    def count_times(self, counts: int) -> Question:
        """Return the same question with the wish that the objects be counted several times."""
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


def article(name: str) -> str:
    """Return "a" or "an", as the name needs it."""
    return "an" if name[0] in "aeiou" else "a"


def group_name(group: str) -> str:
    """Name the objects of a group: "red objects", "circles"."""
    return f"{group} objects" if group in COLOURS else f"{group}s"


def members(scene: Scene, group: str) -> tuple[SceneObject, ...]:
    """Return the objects of a group, in reading order."""
    return tuple(o for o in scene.objects if group in (o.colour, o.shape))


def _step(scene: Scene, operation: str, group: str, before: int) -> Step:
    count = len(members(scene, group))
    after = before - count if operation == "subtract" else before + count
    return Step(operation, group, count, before, after)


def subtraction(scene: Scene, rng: np.random.Generator) -> Question:
    """Take a colour or a shape away and count the rest, in the manner of CLEVR-Math."""
    group = pick(rng, GROUPS)
    step = _step(scene, "subtract", group, len(scene.objects))
    return Question(
        kind="subtraction",
        text=pick(rng, _SUBTRACTION).format(s=group_name(group)),
        answer=str(step.after),
        subjects=(group,),
        steps=(step,),
    )


def existence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether an object is there; half of the time it is."""
    if scene.objects and rng.random() < 0.5:
        name = scene.objects[int(rng.integers(len(scene.objects)))].name
    else:
        absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in scene.by_name]
        name = pick(rng, tuple(absent))
    return Question(
        kind="existence",
        text=pick(rng, _EXISTENCE).format(s=f"{article(name)} {name}"),
        answer="yes" if name in scene.by_name else "no",
        subjects=(name,),
    )


def attribute(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the mark or the size of an object that is there; ``existence`` where none is."""
    if not scene.objects:
        return existence(scene, rng)
    o = scene.objects[int(rng.integers(len(scene.objects)))]
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

    Half of the answers are "yes"; half of the others are of equal numbers, where the scene has two
    groups of one number that is not 0.
    """
    counts = {group: len(members(scene, group)) for group in GROUPS}
    asked = pick(rng, ("more", "fewer"))
    right = 1 if asked == "more" else -1
    relation = right if rng.random() < 0.5 else pick(rng, (0, -right))
    pairs = [pair for pair in permutations(GROUPS, 2) if any(counts[group] for group in pair)]
    related = [pair for pair in pairs if _relation(counts, *pair) == relation]
    first, second = pick(rng, tuple(related or pairs or permutations(GROUPS, 2)))
    yes = _relation(counts, first, second) == right
    text = pick(rng, _COMPARISON).format(m=asked, a=group_name(first), b=group_name(second))
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
    """Subtract and add groups one after the other, 1 to ``MAX_STEPS`` steps.

    Two or three steps unless ``length`` says how many. No group comes again before all have
    come. No step leads below 0 or above ``MAX_VALUE``.
    """
    value = len(scene.objects)
    steps: list[Step] = []
    for i in range(int(rng.integers(2, 4)) if length is None else length):
        if i % len(GROUPS) == 0:  # each group once before one comes again
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
"""Kinds of question: each maps (scene, rng) to a question with its true answer."""


def draw_question(
    scene: Scene, rng: np.random.Generator, kind: str, steps: int | None = None
) -> Question:
    """Ask a question of a kind; a ``chain`` of so many steps."""
    return chain(scene, rng, steps) if kind == "chain" else KINDS[kind](scene, rng)
