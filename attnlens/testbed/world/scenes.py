"""Scenes of coloured shapes: what is where, and how it is drawn.

Every object has a cell of a grid to itself, and a cell is exactly one visual token (28 x 28 pixels:
patches of 14 pixels, merged two by two). No two objects of a scene share both colour and shape, so
"the red circle" names one object. A description gives colours and shapes; sizes and marks take a
second look. Faint strokes in some empty cells are clutter, not objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from attnlens.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

T = TypeVar("T")

CELL = 28
"""Side of a cell in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "green": (35, 140, 55),
    "blue": (40, 75, 205),
    "purple": (135, 60, 170),
    "orange": (225, 125, 20),
    "gray": (95, 95, 100),
}
"""All dark enough for a white mark to stand out."""
SHAPES = ("circle", "square", "triangle", "diamond")
MARKS = ("cross", "dot", "bar", "ring")
SIZES: dict[str, tuple[float, float]] = {"small": (9.4, 10.2), "large": (12.4, 13.2)}
"""Range of the radius in pixels."""
JITTER = 1.5
"""Largest offset of an object from the middle of its cell, in pixels, across and down."""

GRIDS: dict[str, tuple[tuple[int, int], ...]] = {
    "small": ((6, 6), (4, 9), (9, 4), (5, 8), (8, 5), (6, 7), (7, 6), (6, 8), (8, 6), (7, 7)),
    "medium": ((6, 10), (10, 6), (8, 8), (7, 9), (9, 7), (8, 10), (10, 8)),
    "large": ((10, 10), (9, 12), (12, 9), (9, 16), (16, 9), (12, 12)),
}
"""Grids (rows, columns) by size class: 36 to 144 visual tokens."""

GRID_SHARES = {"small": 0.6, "medium": 0.25, "large": 0.15}
"""How often each size class is drawn."""

MAX_OBJECTS = 12


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    colour, shape, size, mark
        Names from ``COLOURS``, ``SHAPES``, ``SIZES`` and ``MARKS``.
    row, column
        The cell, counted from 0 at the top left.
    centre
        (x, y) of the object's middle, in pixels of the image.
    radius
        Half the object's extent, in pixels.
    """

    colour: str
    shape: str
    size: str
    mark: str
    row: int
    column: int
    centre: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        """Colour and shape, which no other object of the scene shares."""
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Pixel box (left, top, right, bottom) around the drawn object."""
        x, y = self.centre
        r = self.radius
        return (x - r, y - r, x + r, y + r)


@dataclass(frozen=True)
class Scene:
    """A grid of cells with objects in reading order (row by row, left to right).

    Attributes
    ----------
    rows, columns
        Size of the grid.
    objects
        The objects.
    background
        RGB colour of the background.
    clutter
        Faint strokes in empty cells, each (left, top, right, bottom) in pixels.
    """

    rows: int
    columns: int
    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int] = (238, 236, 230)
    clutter: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return (self.columns * CELL, self.rows * CELL)

    @cached_property
    def by_name(self) -> dict[str, SceneObject]:
        """The objects by colour and shape."""
        return {o.name: o for o in self.objects}

    @property
    def absent_names(self) -> list[str]:
        """Colours and shapes that no object of the scene has together."""
        names = (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
        return [name for name in names if name not in self.by_name]

    def visual_token(self, o: SceneObject) -> int:
        """Index, in reading order, of the visual token that shows an object."""
        return o.row * self.columns + o.column

    def draw(self) -> Image.Image:
        """Draw the scene as an RGB picture of ``size`` pixels."""
        from PIL import Image, ImageDraw

        scale = 2  # drawn twice as large and then reduced, for smooth edges
        width, height = self.size
        image = Image.new("RGB", (width * scale, height * scale), self.background)
        pen = ImageDraw.Draw(image)
        faint = tuple(c - 36 for c in self.background)
        for stroke in self.clutter:
            pen.line([c * scale for c in stroke], fill=faint, width=2 * scale)
        for o in self.objects:
            _draw_object(pen, o, scale)
        return image.reduce(scale)


def _draw_object(pen: Any, o: SceneObject, scale: int) -> None:
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


def _draw_mark(pen: Any, o: SceneObject, scale: int) -> None:
    """Draw the mark, always in white: a small model does not learn marks of two inks."""
    x, y = (c * scale for c in o.centre)
    r = o.radius * scale
    in_triangle = o.shape == "triangle"  # wide below its middle
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


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Choose one of the options, each with the same probability."""
    return options[int(rng.integers(len(options)))]


def pick_by_share(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    """Choose a key with the probability that is its value."""
    return str(rng.choice(list(shares), p=list(shares.values())))


def random_scene(
    rng: np.random.Generator,
    *,
    objects: int | None = None,
    grid: tuple[int, int] | str | None = None,
) -> Scene:
    """Draw a random scene.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same scene.
    objects
        Number of objects, 0 to ``MAX_OBJECTS``. By default none in 2% of scenes, 1 or 2 in 8%,
        3 to 9 in 75%, 10 to ``MAX_OBJECTS`` in 15%.
    grid
        (rows, columns), or a size class of ``GRIDS``; random by default.

    Raises
    ------
    InputError
        If the number of objects is out of range, or the size class is unknown.
    """
    if objects is not None and not 0 <= objects <= MAX_OBJECTS:
        raise InputError(f"a scene of {objects} objects: give 0 to {MAX_OBJECTS}")
    if isinstance(grid, str) and grid not in GRIDS:
        raise InputError(f"unknown size of scene {grid!r}: use one of {', '.join(GRIDS)}")
    if grid is None:
        grid = pick_by_share(rng, GRID_SHARES)
    if isinstance(grid, str):
        grid = GRIDS[grid][rng.integers(len(GRIDS[grid]))]
    rows, columns = grid
    count = min(_object_count(rng) if objects is None else objects, rows * columns)
    kinds = [(c, s) for c in COLOURS for s in SHAPES]
    chosen = rng.choice(len(kinds), size=count, replace=False)
    order = rng.permutation(rows * columns)
    made = []
    for kind, cell in zip(chosen, sorted(int(c) for c in order[:count]), strict=True):
        colour, shape = kinds[int(kind)]
        made.append(_random_object(rng, colour, shape, *divmod(cell, columns)))
    free = [int(c) for c in order[count:]]
    strokes = int(rng.integers(0, 5)) if rng.random() < 0.5 else 0
    clutter = tuple(_random_stroke(rng, *divmod(cell, columns)) for cell in free[:strokes])
    shade = int(rng.integers(-8, 9))
    background = (238 + shade, 236 + shade, 230 + shade)
    return Scene(rows, columns, tuple(made), background, clutter)


def _object_count(rng: np.random.Generator) -> int:
    draw = rng.random()
    if draw < 0.02:
        return 0
    if draw < 0.1:
        return int(rng.integers(1, 3))
    return int(rng.integers(3, 10) if draw < 0.85 else rng.integers(10, MAX_OBJECTS + 1))


def _random_object(
    rng: np.random.Generator, colour: str, shape: str, row: int, column: int
) -> SceneObject:
    size = str(rng.choice(list(SIZES)))
    radius = float(rng.uniform(*SIZES[size]))
    slack = min(JITTER, CELL / 2 - radius)
    x, y = rng.uniform(-slack, slack, size=2)
    return SceneObject(
        colour=colour,
        shape=shape,
        size=size,
        mark=pick(rng, MARKS),
        row=row,
        column=column,
        centre=((column + 0.5) * CELL + float(x), (row + 0.5) * CELL + float(y)),
        radius=radius,
    )


def _random_stroke(
    rng: np.random.Generator, row: int, column: int
) -> tuple[float, float, float, float]:
    left, right = rng.uniform(4, CELL - 4, size=2)
    top, bottom = rng.uniform(4, CELL - 4, size=2)
    x, y = column * CELL, row * CELL
    return (x + float(left), y + float(top), x + float(right), y + float(bottom))
