"""Write the pages of the API reference, one for each public module, into ``docs/reference/``.

What a module exports is on its page, so that a new export needs no line in the documents.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import attnlens

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def page(module: ModuleType) -> str:
    """Return the page of what a module exports, submodules aside."""
    entries = [f"# {module.__name__}"]
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue
        public = home = f"{module.__name__}.{name}"
        if find_spec(public):  # a submodule of the same name hides what it exports
            home = f"{value.__module__}.{name}"
        entries.append(entry(home, public))
    return "\n\n".join(entries) + "\n"


def entry(home: str, heading: str) -> str:
    """Return the directive that documents an object under a heading."""
    label = heading.rpartition(".")[2]
    return f"::: {home}\n    options:\n      heading: {heading}\n      toc_label: {label}"


def write(folder: Path = FOLDER) -> list[Path]:
    """Write all pages; return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {
        "core": attnlens,
        "measures": attnlens.measures,
        "interventions": attnlens.interventions,
        "plots": attnlens.plots,
        "testbed": attnlens.testbed,
    }
    texts = {name: page(module) for name, module in modules.items()}
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return [folder / f"{name}.md" for name in texts]


if __name__ == "__main__":
    write()
