"""Scenes of coloured shapes: what is where, and how it is drawn.

Every object stands in its own cell of a grid, and a cell covers exactly one visual token
(28 x 28 pixels: patches of 14 pixels, merged two by two). No two objects of a scene share both
colour and shape, so that "the red circle" names one object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CELL = 28
"""Side of a cell, in pixels: one visual token."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "green": (35, 140, 55),
    "blue": (40, 75, 205),
    "purple": (135, 60, 170),
    "orange": (225, 125, 20),
    "gray": (95, 95, 100),
}
"""Dark enough, all of them, for a white mark to stand out."""
SHAPES = ("circle", "square", "triangle", "diamond")
MARKS = ("cross", "dot", "bar", "ring")
GRIDS = ((4, 4), (4, 5), (5, 4), (4, 6), (6, 4), (5, 5), (5, 6), (6, 5), (6, 6))
"""Scene sizes (rows, columns) that the generator draws from: 16 to 36 visual tokens."""

MAX_OBJECTS = 9


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    colour, shape, mark
        Names out of ``COLOURS``, ``SHAPES`` and ``MARKS``.
    row, column
        The cell, counted from 0 at the top left.
    centre
        (x, y) of the object's middle, in pixels of the image.
    radius
        Half the object's extent, in pixels.
    """

    colour: str
    shape: str
    mark: str
    row: int
    column: int
    centre: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        """Colour and shape, which name the object uniquely within its scene."""
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Pixel box (left, top, right, bottom) that holds the drawn object."""
        x, y = self.centre
        r = self.radius
        return (x - r, y - r, x + r, y + r)


@dataclass(frozen=True)
class Scene:
    """A grid of cells with objects in reading order (row by row, left to right)."""

    rows: int
    columns: int
    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int] = (238, 236, 230)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return (self.columns * CELL, self.rows * CELL)

    @cached_property
    def by_name(self) -> dict[str, SceneObject]:
        """The objects by colour and shape."""
        return {o.name: o for o in self.objects}

    def visual_token(self, o: SceneObject) -> int:
        """Index of the visual token that an object stands on, in reading order."""
        return o.row * self.columns + o.column

    def draw(self) -> Image.Image:
        """Draw the scene as an RGB picture of ``size`` pixels."""
        from PIL import Image, ImageDraw

        scale = 2  # drawn at twice the size and reduced: smooth edges
        width, height = self.size
        image = Image.new("RGB", (width * scale, height * scale), self.background)
        pen = ImageDraw.Draw(image)
        for o in self.objects:
            _draw_object(pen, o, scale)
        return image.reduce(scale)


def _draw_object(pen, o: SceneObject, scale: int) -> None:  # type: ignore[no-untyped-def]
    x, y = (c * scale for c in o.centre)
    r = o.radius * scale
    fill = COLOURS[o.colour]
    if o.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif o.shape == "square":
        pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif o.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=fill)
    else:
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=fill)
    _draw_mark(pen, o, scale)


def _draw_mark(pen, o: SceneObject, scale: int) -> None:  # type: ignore[no-untyped-def]
    """Draw the mark in white: one ink for all, since two would hide it from a small model."""
    x, y = (c * scale for c in o.centre)
    r = o.radius * scale
    in_triangle = o.shape == "triangle"  # its wide part is below the middle
    y += 0.25 * r if in_triangle else 0
    m = (0.5 if in_triangle else 0.6) * r
    ink, thick = (255, 255, 255), round(0.32 * r)
    if o.mark == "cross":
        pen.line((x - m, y, x + m, y), fill=ink, width=thick)
        pen.line((x, y - m, x, y + m), fill=ink, width=thick)
    elif o.mark == "dot":
        pen.ellipse((x - 0.75 * m, y - 0.75 * m, x + 0.75 * m, y + 0.75 * m), fill=ink)
    elif o.mark == "bar":
        pen.line((x - m, y, x + m, y), fill=ink, width=thick)
    else:
        pen.ellipse((x - m, y - m, x + m, y + m), outline=ink, width=round(0.2 * r))


def random_scene(
    rng: np.random.Generator,
    *,
    objects: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Scene:
    """Draw a scene from the generator's distribution.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same scene.
    objects
        How many objects, 0 to ``MAX_OBJECTS``; drawn from 3 to ``MAX_OBJECTS`` when not given.
    grid
        (rows, columns); drawn from ``GRIDS`` when not given.
    """
    rows, columns = GRIDS[rng.integers(len(GRIDS))] if grid is None else grid
    count = int(rng.integers(3, MAX_OBJECTS + 1)) if objects is None else objects
    count = min(count, rows * columns)
    kinds = [(c, s) for c in COLOURS for s in SHAPES]
    chosen = rng.choice(len(kinds), size=count, replace=False)
    cells = sorted(int(c) for c in rng.choice(rows * columns, size=count, replace=False))
    made = []
    for kind, cell in zip(chosen, cells, strict=True):
        colour, shape = kinds[int(kind)]
        row, column = divmod(cell, columns)
        radius = float(rng.uniform(11.0, 13.0))
        slack = CELL / 2 - radius
        made.append(
            SceneObject(
                colour=colour,
                shape=shape,
                mark=MARKS[rng.integers(len(MARKS))],
                row=row,
                column=column,
                centre=(
                    (column + 0.5) * CELL + float(rng.uniform(-slack, slack)),
                    (row + 0.5) * CELL + float(rng.uniform(-slack, slack)),
                ),
                radius=radius,
            )
        )
    shade = int(rng.integers(-8, 9))
    background = (238 + shade, 236 + shade, 230 + shade)
    return Scene(rows=rows, columns=columns, objects=tuple(made), background=background)
