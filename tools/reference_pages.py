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
    """Return the page of what a module exports."""
    return "\n\n".join([f"# {module.__name__}", *entries_of(module)]) + "\n"


def entries_of(module: ModuleType) -> list[str]:
    """Return a directive for everything that a module exports."""
    entries = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            # the modules in attnlens have pages of their own
            entries += [] if module is attnlens else entries_of(value)
            continue
        public = home = f"{module.__name__}.{name}"
        # a submodule of the same name hides what a package exports
        if hasattr(module, "__path__") and find_spec(public):
            home = f"{value.__module__}.{name}"
        entries.append(entry(home, public))
    return entries


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
        "lenses": attnlens.lenses,
        "plots": attnlens.plots,
        "explorer": attnlens.explorer,
        "testbed": attnlens.testbed,
    }
    texts = {name: page(module) for name, module in modules.items()}
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return [folder / f"{name}.md" for name in texts]


if __name__ == "__main__":
    write()
