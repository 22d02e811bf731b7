"""Print pip constraints that hold every dependency at the lower bound of ``pyproject.toml``.

Run it with the Python that the constraints are for: environment markers are read there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS = ("dev",)


def lower_bounds(project: dict) -> list[str]:
    """Return a line ``name==lowest`` for each requirement that applies here.

    Parameters
    ----------
    project
        The table ``project`` of ``pyproject.toml``.

    Raises
    ------
    ValueError
        If a requirement has no lower bound, or several.
    """
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    lines = []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"{text!r}: give it one lower bound")
        lines.append(f"{requirement.name}=={bounds[0]}")
    return lines


if __name__ == "__main__":
    file = Path(__file__).parents[1] / "pyproject.toml"
    print("\n".join(lower_bounds(tomllib.loads(file.read_text())["project"])))
