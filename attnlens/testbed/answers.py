"""Written answers in the formats of the papers, with the truth of each part.

An answer is built from parts. A part knows which object it speaks of and whether the text before
it determines it ("told") or only the image does ("must look").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnlens.errors import InputError
from attnlens.testbed.questions import GROUPS, Question, members
from attnlens.testbed.scenes import Scene, SceneObject


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
    section
        ``description``, ``reasoning``, ``verification`` or ``conclusion``; ``summary`` in mode
        ``reflection``. A tag belongs to the section that it opens or closes.
    """

    text: str
    speaks_of: int | None = None
    must_look: bool = False
    section: str = ""


def listing(scene: Scene) -> list[Part]:
    """List the objects by number, in reading order: all of it must be looked up."""
    if not scene.objects:
        return [Part(" There are no objects.", must_look=True)]
    parts = [Part(" I see")]
    for i, o in enumerate(scene.objects):
        parts += [Part(" #", i, True), Part(f"{i + 1}"), Part(f" {o.name}", i, True)]
    parts.append(Part(".", must_look=True))  # that there is no further object
    return parts


def tally(scene: Scene, *, must_look: bool = False) -> list[Part]:
    """Count the objects of each colour and of each shape."""
    parts: list[Part] = []
    for group in GROUPS:
        count = Part(f" {len(members(scene, group))}", must_look=must_look)
        parts += [Part(f" {group}"), count, Part(",")]
    return [*parts[:-1], Part(".")]


def facts(
    scene: Scene,
    attributes: tuple[str, ...] = ("size", "mark"),
    order: Sequence[int] | None = None,
) -> list[Part]:
    """State attributes of objects, which colour and shape do not tell.

    Parameters
    ----------
    scene
        The scene.
    attributes
        Which attributes.
    order
        Indices of the objects; all of them in reading order when not given.
    """
    if not scene.objects:
        return [Part(" no objects.")]
    parts: list[Part] = []
    for i in range(len(scene.objects)) if order is None else order:
        o = scene.objects[i]
        parts += [Part(f" {o.name}", i), Part(":"), *_stated(o, i, attributes), Part(",")]
    return [*parts[:-1], Part(".")]


def _stated(o: SceneObject, index: int, attributes: tuple[str, ...]) -> list[Part]:
    return [Part(f" {getattr(o, name)}", index, True) for name in attributes]


def working(scene: Scene, question: Question, *, looked: bool = False) -> list[Part]:
    """Work out the answer from the counts.

    Parameters
    ----------
    scene, question
        What is asked of which scene.
    looked
        Whether the image may be looked at for a size or a mark. Where it may not, because a
        verification follows, the part that asks for one says that it must be checked.
    """
    if question.kind in ("subtraction", "chain"):
        return [Part(text) for text in _calculation(question)]
    if question.kind == "existence":
        name = question.subjects[0]
        return [Part(f" {name} {int(name in scene.by_name)}, so {question.answer}.")]
    if question.kind == "comparison":
        a, b = (len(members(scene, group)) for group in question.subjects)
        first, second = question.subjects
        than = "is more than" if a > b else "is fewer than" if a < b else "equals"
        return [Part(f" {first} {a}, {second} {b}: {a} {than} {b}, so {question.answer}.")]
    if not looked:
        return [Part(f" The {question.asked} of the {question.subjects[0]} must be checked.")]
    return asked_fact(scene, question, must_look=True)


def _calculation(question: Question) -> list[str]:
    lines = []
    for i, step in enumerate(question.steps, start=1):
        sign = "-" if step.operation == "subtract" else "+"
        start = ""
        if question.kind == "chain":
            start = f" Step {i}: {step.group} {step.operation},"
        lines.append(
            f"{start} {step.group} {step.count}: {step.before} {sign} {step.count} = {step.after}."
        )
    return lines


def asked_fact(scene: Scene, question: Question, *, must_look: bool) -> list[Part]:
    """State size and mark of the object that an ``attribute`` question asks about."""
    name = question.subjects[0]
    index = [o.name for o in scene.objects].index(name)
    stated = _stated(scene.objects[index], index, ("size", "mark"))
    return [
        Part(f" {name}", index),
        Part(":"),
        *(replace(part, must_look=must_look) for part in stated),
        Part(f", so {question.answer}."),
    ]


def _think(scene: Scene, question: Question, *, looked: bool) -> list[Part]:
    """Return total, tally and working: told by the listing, but for an attribute looked up."""
    n = len(scene.objects)
    return [Part(f" Total {n}:"), *tally(scene), *working(scene, question, looked=looked)]


def _conclusion(scene: Scene, question: Question) -> list[Part]:
    if question.kind == "attribute":
        return asked_fact(scene, question, must_look=False)
    return [Part(f" The answer is {question.answer}.")]


def _boxed(question: Question) -> Part:
    return Part(f"\\boxed{{{question.answer}}}")


def _summary(question: Question) -> Part:
    subjects = " ".join((question.asked, *question.subjects)).strip()
    if question.kind == "chain":
        subjects = f"{len(question.steps)} steps"
    return Part(f" The task: {question.kind}, {subjects}.")


def write_answer(scene: Scene, question: Question, mode: str) -> list[Part]:
    """Write the true answer of a question in the format of a mode.

    Parameters
    ----------
    scene, question
        The scene and a question about it.
    mode
        ``normal`` (the boxed answer), ``cot`` (``<think>``), ``back`` (``<think>``, then a
        verification inside ``<back>``, then ``<think>`` again; with ``question.looks == 2`` the
        sizes first and the marks in a second verification) or ``reflection`` (``<SUMMARY>``,
        ``<CAPTION>``, ``<REASONING>``, ``<REFLECTION>``, ``<CONCLUSION>``).

    Raises
    ------
    InputError
        If the mode is none of the four.
    """
    closing = _as("conclusion", [Part("\n"), _boxed(question)])
    if mode == "normal":
        return closing[1:]
    described = _as("description", [Part("<think>"), *listing(scene)])
    thought = _think(scene, question, looked=mode == "cot")
    reasoned = _as("reasoning", [*thought, Part(" </think>")])
    if mode == "cot":
        return [*described, *reasoned, *closing]
    if mode == "back":
        parts = [*described, *reasoned]
        looks = [("size", "mark")] if question.looks == 1 else [("size",), ("mark",)]
        for i, attributes in enumerate(looks):
            parts += _as("verification", [Part("\n"), *_inside("back", facts(scene, attributes))])
            last = i + 1 == len(looks)
            then = _conclusion(scene, question) if last else [Part(" I look once more.")]
            parts += _as(
                "conclusion" if last else "reasoning", [Part("\n"), *_inside("think", then)]
            )
        return [*parts, *closing]
    if mode == "reflection":
        concluded = [*_conclusion(scene, question), Part(" "), _boxed(question)]
        return [
            *_as("summary", [*_inside("SUMMARY", [_summary(question)]), Part("\n")]),
            *_as("description", [*_inside("CAPTION", listing(scene)), Part("\n")]),
            *_as("reasoning", [*_inside("REASONING", thought), Part("\n")]),
            *_as("verification", [*_inside("REFLECTION", facts(scene)), Part("\n")]),
            *_as("conclusion", _inside("CONCLUSION", concluded)),
        ]
    raise InputError(
        f"the testbed has no answers for mode {mode!r}: use 'normal', 'cot', 'back' or 'reflection'"
    )


def _inside(tag: str, parts: list[Part]) -> list[Part]:
    return [Part(f"<{tag}>"), *parts, Part(f" </{tag}>")]


def _as(section: str, parts: list[Part]) -> list[Part]:
    return [replace(part, section=section) for part in parts]


def text_of(parts: list[Part]) -> str:
    """Join the words of the parts."""
    return "".join(part.text for part in parts)
