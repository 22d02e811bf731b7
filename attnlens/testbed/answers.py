"""Written answers in the formats of the papers, with the truth of each part.

An answer is built from parts. A part knows which object it speaks of and whether the text before
it determines it ("told") or only the image does ("must look").
"""

from __future__ import annotations

from dataclasses import dataclass

from attnlens.errors import InputError
from attnlens.testbed.questions import Question, article
from attnlens.testbed.scenes import COLOURS, SHAPES, Scene


@dataclass(frozen=True)
class Part:
    """A stretch of an answer.

    Attributes
    ----------
    text
        The words.
    speaks_of
        Index of the object (in reading order) that the words speak of, or None.
    must_look
        True where neither the question nor the text before determines the words.
    """

    text: str
    speaks_of: int | None = None
    must_look: bool = False


def _listing(scene: Scene) -> list[Part]:
    """State colour and shape of every object in reading order: all of it must be looked up."""
    if not scene.objects:
        return [Part(" The image shows no objects.")]
    parts = [Part(" The image shows")]
    for i, o in enumerate(scene.objects):
        parts += [Part(f" {article(o.name)}"), Part(f" {o.name}", i, True), Part(",")]
    parts[-1] = Part(".")
    return parts


def _total(scene: Scene) -> Part:
    n = len(scene.objects)
    return Part(f" That makes {n} object{'' if n == 1 else 's'}.")


def _reasoning(scene: Scene, question: Question) -> list[Part]:
    """Reason from what the listing said: every word of it is told by the text before.

    A number stands right after the word that it counts, as in the tally that perception trains.
    """
    n, k = len(scene.objects), len(question.chosen)
    counts = ", ".join(f"{word} {count}" for word, count in _counts(scene))
    last = f" I remove {question.subject} {k}. Then {n} - {k} = {n - k}. That leaves {n - k}."
    return [Part(f" I count: {counts}."), Part(last)]


def _counts(scene: Scene) -> list[tuple[str, int]]:
    """Count the objects of each colour, then of each shape."""
    counts = [(c, sum(o.colour == c for o in scene.objects)) for c in COLOURS]
    return counts + [(s, sum(o.shape == s for o in scene.objects)) for s in SHAPES]


def _verification(scene: Scene) -> list[Part]:
    """State the mark of every object, which stands nowhere in the text before."""
    if not scene.objects:
        return [Part(" I look at the image again: there is no object.")]
    parts = [Part(" I look at the image again:")]
    for i, o in enumerate(scene.objects):
        parts += [Part(" the"), Part(f" {o.name}", i), Part(":"), Part(f" {o.mark}", i, True)]
        parts.append(Part(","))
    parts[-1] = Part(".")
    return parts


def _boxed(question: Question) -> Part:
    return Part(f"\\boxed{{{question.answer}}}")


def write_answer(scene: Scene, question: Question, mode: str) -> list[Part]:
    """Write the true answer of a question in the format of a mode.

    Parameters
    ----------
    scene, question
        The scene and a question about it.
    mode
        ``normal`` (the boxed answer), ``cot`` (``<think>``) or ``back`` (``<think>``, then a
        verification inside ``<back>``, then ``<think>`` again).

    Raises
    ------
    InputError
        If the mode is not one of the three.
    """
    if mode == "normal":
        return [_boxed(question)]
    think = [Part("<think>"), *_listing(scene), _total(scene), *_reasoning(scene, question)]
    think.append(Part(" </think>"))
    if mode == "cot":
        return [*think, Part("\n"), _boxed(question)]
    if mode != "back":
        raise InputError(
            f"the testbed has no answers for mode {mode!r}: use 'normal', 'cot' or 'back'"
        )
    return [
        *think,
        Part("\n<back>"),
        *_verification(scene),
        Part(" </back>"),
        Part("\n<think>"),
        Part(f" The check agrees, so the answer is {question.answer}."),
        Part(" </think>"),
        Part("\n"),
        _boxed(question),
    ]


LISTING_QUESTION = "List all objects with their marks."
TALLY_QUESTION = "Count the objects by colour and by shape."


def list_marks(scene: Scene) -> list[Part]:
    """List every object with its mark: the short answer that teaches the model to see."""
    first, *rest = _verification(scene)
    return [Part(first.text.lstrip()), *rest]


def tally(scene: Scene) -> list[Part]:
    """Count the objects of each colour and each shape: the short answer that teaches counting."""
    parts: list[Part] = []
    for word, count in _counts(scene):
        parts += [Part(f" {word}" if parts else word), Part(f" {count}", must_look=True), Part(",")]
    parts[-1] = Part(".")
    return parts


def text_of(parts: list[Part]) -> str:
    """Join the words of the parts."""
    return "".join(part.text for part in parts)
