"""Questions about a scene, with their true answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnlens.testbed.scenes import COLOURS, SHAPES, Scene, SceneObject

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Question:
    r"""A question with what is needed to answer it.

    Attributes
    ----------
    kind
        ``subtraction``, ``existence`` or ``attribute``.
    text
        The words.
    answer
        The true answer, as it stands inside ``\boxed{}``.
    subject
        What is asked about: a colour or a shape ("red", "circle"), or an object ("red circle").
    chosen
        The objects of the scene that the subject covers, in reading order.
    """

    kind: str
    text: str
    answer: str
    subject: str
    chosen: tuple[SceneObject, ...]


_SUBTRACTION = (
    "Subtract all {s}. How many objects are left?",
    "How many objects are left if all {s} are removed?",
    "Remove all {s}. How many objects remain?",
)
_EXISTENCE = ("Is there {s}?", "Does the image show {s}?", "Can you see {s}?")
_ATTRIBUTE = (
    "What mark is on the {s}?",
    "Which mark does the {s} have?",
    "Name the mark of the {s}.",
)


def article(name: str) -> str:
    """Return "a" or "an", as the name needs it."""
    return "an" if name[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def subtraction(scene: Scene, rng: np.random.Generator) -> Question:
    """Take a colour or a shape away and count the rest, in the manner of CLEVR-Math."""
    if rng.random() < 0.5:
        word = _pick(rng, tuple(COLOURS))
        chosen = tuple(o for o in scene.objects if o.colour == word)
        group = f"{word} objects"
    else:
        word = _pick(rng, SHAPES)
        chosen = tuple(o for o in scene.objects if o.shape == word)
        group = f"{word}s"
    return Question(
        kind="subtraction",
        text=_pick(rng, _SUBTRACTION).format(s=group),
        answer=str(len(scene.objects) - len(chosen)),
        subject=word,
        chosen=chosen,
    )


def existence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether an object is there; half of the time it is."""
    if scene.objects and rng.random() < 0.5:
        name = scene.objects[int(rng.integers(len(scene.objects)))].name
    else:
        absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in scene.by_name]
        name = _pick(rng, tuple(absent))
    found = scene.by_name.get(name)
    return Question(
        kind="existence",
        text=_pick(rng, _EXISTENCE).format(s=f"{article(name)} {name}"),
        answer="no" if found is None else "yes",
        subject=name,
        chosen=() if found is None else (found,),
    )


def attribute(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the mark of an object that is in the scene."""
    if not scene.objects:
        return existence(scene, rng)
    o = scene.objects[int(rng.integers(len(scene.objects)))]
    return Question(
        kind="attribute",
        text=_pick(rng, _ATTRIBUTE).format(s=o.name),
        answer=o.mark,
        subject=o.name,
        chosen=(o,),
    )


KINDS: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    "subtraction": subtraction,
    "existence": existence,
    "attribute": attribute,
}
"""Kinds of question: each maps (scene, rng) to a question with its true answer."""

MODE_KINDS: dict[str, tuple[str, ...]] = {
    "normal": ("subtraction", "existence", "attribute"),
    "cot": ("subtraction",),
    "back": ("subtraction",),
}
"""The kinds that each mode is trained and scored on.

The others are asked in ``normal`` alone: a mark is what the verification states, and whether an
object is there is told by the listing.
"""
