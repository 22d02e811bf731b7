"""Films of a scene in which one object changes at a known frame, with a question about when.

The testbed's model was trained on single scenes alone. Films serve to check which token shows which
moment; what the model answers about them means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnlens.errors import InputError
from attnlens.testbed.world.scenes import CELL, COLOURS, Scene, pick, random_scene

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANGES = ("colour", "place")
"""What may change: an object's colour, or the cell it is in."""


@dataclass(frozen=True)
class Film:
    """A scene before and after a change.

    Attributes
    ----------
    before, after
        The scenes, which differ in one object.
    frames
        Number of frames.
    frame
        First frame of the scene after the change, counted from 0.
    change
        ``colour`` or ``place``.
    target
        Index of the object in the scene before.
    question, answer
        A question about when, and the frame, counted from 1.
    """

    before: Scene
    after: Scene
    frames: int
    frame: int
    change: str
    target: int
    question: str
    answer: str

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Visual tokens of one frame, in reading order, that the change can be seen in."""
        pairs = ((self.before, self.after), (self.after, self.before))
        return tuple(
            sorted({a.visual_token(o) for a, b in pairs for o in a.objects if o not in b.objects})
        )

    def draw(self) -> list[Image.Image]:
        """Draw all frames as RGB pictures."""
        before, after = self.before.draw(), self.after.draw()
        return [(before if i < self.frame else after).copy() for i in range(self.frames)]


def random_film(
    rng: np.random.Generator,
    *,
    frames: int = 8,
    frame: int | None = None,
    change: str = "colour",
    grid: tuple[int, int] | str = "small",
) -> Film:
    """Draw a film.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same film.
    frames
        Number of frames, at least 2.
    frame
        First frame after the change, 1 to ``frames`` - 1; random by default.
    change
        ``colour`` or ``place``.
    grid
        As in ``random_scene``.

    Raises
    ------
    InputError
        If a number is out of range, or the change is unknown.
    """
    if not isinstance(frames, int) or frames < 2:
        raise InputError(f"frames={frames!r}: give a whole number of at least 2")
    if change not in CHANGES:
        raise InputError(f"change={change!r}: use one of {', '.join(CHANGES)}")
    if frame is None:
        frame = int(rng.integers(1, frames))
    if not isinstance(frame, int) or not 1 <= frame < frames:
        raise InputError(f"frame={frame!r}: give 1 to {frames - 1}, where the film changes")
    scene = random_scene(rng, objects=int(rng.integers(2, 7)), grid=grid)
    target = int(rng.integers(len(scene.objects)))
    one = scene.objects[target]
    if change == "colour":
        taken = {o.colour for o in scene.objects if o.shape == one.shape}
        changed = replace(one, colour=pick(rng, [c for c in COLOURS if c not in taken]))
        verb = f"turn {changed.colour}"
    else:
        full = {scene.visual_token(o) for o in scene.objects}
        free = [cell for cell in range(scene.rows * scene.columns) if cell not in full]
        row, column = divmod(pick(rng, free), scene.columns)
        x, y = one.centre
        centre = (x + (column - one.column) * CELL, y + (row - one.row) * CELL)
        changed = replace(one, row=row, column=column, centre=centre)
        verb = "move"
    others = [o for o in scene.objects if o is not one]
    objects = sorted([*others, changed], key=scene.visual_token)
    return Film(
        before=scene,
        after=replace(scene, objects=tuple(objects)),
        frames=frames,
        frame=frame,
        change=change,
        target=target,
        question=f"In which frame does the {one.name} {verb}?",
        answer=str(frame + 1),
    )
