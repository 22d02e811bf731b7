"""True answers in the formats of the papers, with the truth of each part.

An answer is built from parts. A part knows which object it is about, and whether the words before
it determine it or the model must look at the image. Only words count as determining it, not the
rules by which scenes are drawn (at most twelve objects, no two with the same name).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnlens.errors import InputError
from attnlens.testbed.world.questions import GROUPS, Question, members
from attnlens.testbed.world.scenes import Scene, SceneObject

VERIFICATION_TAGS = ("<back>", "<REFLECTION>")
"""Tags that open a verification."""


@dataclass(frozen=True)
class Part:
    """A stretch of an answer.

    Attributes
    ----------
    text
        The words.
    speaks_of
        Index (in reading order) of the object that the words are about, or None.
    must_look
        True if neither the question nor the text before determines the words.
    section
        ``summary`` (of the task), ``description``, ``reasoning``, ``verification`` or
        ``conclusion``. A tag belongs to the section that it opens or closes.
    """

    text: str
    speaks_of: int | None = None
    must_look: bool = False
    section: str = ""


def listing(scene: Scene, named: int | None = None) -> list[Part]:
    """List the objects by number, in reading order; what they are must be looked up.

    ``named`` is the index of an object that the question says is there. Until it has been listed,
    the question itself tells that the list goes on.
    """
    if not scene.objects:
        return [Part(" There", must_look=True), Part(" are no objects.")]
    parts = [Part(" I", must_look=named is None), Part(" see")]
    for i, o in enumerate(scene.objects):
        # " I see" tells that there is a first object, but not that there is another
        parts += [
            Part(" #", must_look=i > (named or 0)),
            Part(f"{i + 1}"),
            Part(f" {o.name}", i, True),
        ]
    parts.append(Part(".", must_look=True))  # no further object
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
    named: bool = True,
) -> list[Part]:
    """State attributes of objects: all of them in reading order, or those of ``order``.

    Unless the text before has ``named`` the objects, their names must be looked up too.
    """
    if not scene.objects:
        return [Part(" no objects.", must_look=not named)]
    parts: list[Part] = []
    for i in range(len(scene.objects)) if order is None else order:
        o = scene.objects[i]
        parts += [
            Part(f" {o.name}", i, not named),
            Part(":"),
            *_stated(o, i, attributes),
            Part(",", must_look=not named),
        ]
    return [*parts[:-1], Part(".", must_look=not named)]


def presence(scene: Scene, names: Sequence[str]) -> list[Part]:
    """State for each name whether such an object is there, which must be looked up."""
    there = {o.name: i for i, o in enumerate(scene.objects)}
    parts: list[Part] = []
    for name in names:
        parts += [*_presence(name, there.get(name), must_look=True), Part(",")]
    return [*parts[:-1], Part(".")]


def _presence(name: str, index: int | None, *, must_look: bool = False) -> list[Part]:
    word = " absent" if index is None else " present"
    return [Part(f" {name}", index), Part(":"), Part(word, index, must_look)]


def _stated(o: SceneObject, index: int, attributes: tuple[str, ...]) -> list[Part]:
    return [Part(f" {getattr(o, name)}", index, True) for name in attributes]


def working(scene: Scene, question: Question, *, looked: bool = False) -> list[Part]:
    """Work out the answer from the counts.

    Unless ``looked``, because a verification follows, the text says of a size or a mark that it
    must be checked.
    """
    if question.kind in ("subtraction", "chain"):
        return [Part(_calculation(question))]
    if question.kind == "existence":
        there = _subject(scene, question)
        return [*_presence(question.subjects[0], there), Part(f", so {question.answer}.")]
    if question.kind == "comparison":
        a, b = (len(members(scene, group)) for group in question.subjects)
        first, second = question.subjects
        than = "exceeds" if a > b else "is below" if a < b else "equals"
        # first the words of the task, as in the summary; the conclusion repeats what was asked,
        # which the words of the relation do not
        text = (
            f" {question.asked} {first} than {second}? {first} {a}, {second} {b}: {a} {than} {b}, "
            f"asked for {question.asked}, so {question.answer}."
        )
        return [Part(text)]
    if not looked:
        name = Part(f" {question.subjects[0]}", _subject(scene, question))
        return [Part(f" The {question.asked} of the"), name, Part(" must be checked.")]
    return _asked_fact(scene, question, must_look=True)


def _calculation(question: Question) -> str:
    lines = []
    for step in question.steps:
        sign = "-" if step.operation == "subtract" else "+"
        what = step.group
        if question.kind == "chain":
            what = f"{step.words}, {step.group}"
        lines.append(f" {what} {step.count}: {step.before} {sign} {step.count} = {step.after}")
    return ",".join(lines) + "."


def _asked_fact(scene: Scene, question: Question, *, must_look: bool) -> list[Part]:
    """State size and mark of the object that an ``attribute`` question is about."""
    index = _subject(scene, question)
    assert index is not None  # such questions are about objects that are there
    o = scene.objects[index]
    return [
        Part(f" {o.name}", index),
        Part(":"),
        *(replace(p, must_look=must_look) for p in _stated(o, index, ("size", "mark"))),
        Part(", so"),
        Part(f" {question.answer}", index),
        Part("."),
    ]


def _subject(scene: Scene, question: Question) -> int | None:
    """Index of the object that the question names, or None if it is not there."""
    names = [o.name for o in scene.objects]
    return names.index(question.subjects[0]) if question.subjects[0] in names else None


def _think(scene: Scene, question: Question, *, looked: bool) -> list[Part]:
    parts: list[Part] = []
    for i in range(1, question.counts + 1):
        if question.counts > 1:
            parts.append(Part(f" Count {i} of {question.counts}."))
        parts += [Part(f" Total {len(scene.objects)}:"), *tally(scene)]
    return [*parts, *working(scene, question, looked=looked)]


def _conclusion(scene: Scene, question: Question) -> list[Part]:
    if question.kind == "attribute":
        return _asked_fact(scene, question, must_look=False)
    return [Part(f" The answer is {question.answer}.")]


def _boxed(scene: Scene, question: Question, *, must_look: bool = False) -> list[Part]:
    index = _subject(scene, question) if question.kind in ("existence", "attribute") else None
    return [Part("\\boxed{"), Part(question.answer, index, must_look), Part("}")]


def _summary(scene: Scene, question: Question) -> list[Part]:
    subjects = question.subjects
    if question.kind == "chain":
        what = [Part(" " + ", ".join(step.words for step in question.steps))]
    elif question.kind == "comparison":
        what = [Part(f" {question.asked} {subjects[0]} than {subjects[1]}")]
    elif question.kind == "subtraction":
        what = [Part(f" {subjects[0]}")]
    else:
        what = [Part(f" {subjects[0]}", _subject(scene, question))]
        if question.asked:
            what.insert(0, Part(f" {question.asked} of"))
    return [Part(f" The task is {question.kind}:"), *what, Part(".")]


def write_answer(scene: Scene, question: Question, mode: str) -> list[Part]:
    """Write the true answer of a question in the format of a mode.

    Parameters
    ----------
    scene, question
        The scene and a question about it.
    mode
        ``normal`` (the boxed answer), ``cot`` (``<think>``, which begins with a summary of the
        task), ``back`` (``<think>``, then a verification inside ``<back>``, then ``<think>``
        again; with ``question.looks == 2`` one verification of the sizes and another of the
        marks) or ``reflection`` (``<SUMMARY>``, ``<CAPTION>``, ``<REASONING>``, ``<REFLECTION>``,
        ``<CONCLUSION>``).

    Raises
    ------
    InputError
        If the mode is none of these.
    """
    if mode == "normal":
        return _as("conclusion", _boxed(scene, question, must_look=True))
    closing = _as("conclusion", [Part("\n"), *_boxed(scene, question)])
    listed = listing(scene, _subject(scene, question) if question.kind == "attribute" else None)
    task = _summary(scene, question)
    described = [
        *_as("summary", [Part("<think>"), *task]),
        *_as("description", listed),
    ]
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
            then = _conclusion(scene, question) if last else [Part(" I look again.")]
            parts += _as(
                "conclusion" if last else "reasoning", [Part("\n"), *_inside("think", then)]
            )
        return [*parts, *closing]
    if mode == "reflection":
        concluded = [*_conclusion(scene, question), Part(" "), *_boxed(scene, question)]
        return [
            *_as("summary", [*_inside("SUMMARY", task), Part("\n")]),
            *_as("description", [*_inside("CAPTION", listed), Part("\n")]),
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
