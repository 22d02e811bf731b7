"""Print pip constraints that pin every dependency to its lower bound in ``pyproject.toml``.

Run it with the Python that the constraints are for, since it evaluates environment markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def lower_bounds(requirements: Iterable[Requirement]) -> list[str]:
    """Return a line ``name==lowest`` for each requirement that applies to this Python.

    Raises
    ------
    ValueError
        If a requirement has no lower bound, or several.
    """
    lines = []
    for one in requirements:
        if one.marker is not None and not one.marker.evaluate():
            continue
        bounds = [s.version for s in one.specifier if s.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"{str(one)!r}: give it one lower bound")
        lines.append(f"{one.name}=={bounds[0]}")
    return lines


if __name__ == "__main__":
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    extras = project["optional-dependencies"]
    dev = [text for text in extras["dev"] if not text.startswith("attnlens[")]
    texts = [*project["dependencies"], *dev]
    for name in ("lenses", "video", "eval", "stores"):
        texts += extras[name]
    print("\n".join(lower_bounds(map(Requirement, texts))))
