"""Write the tables of ``docs/gpu.json`` into ``docs/performance.md``, between their two marks.

``attnlens bench --gpu --json docs/gpu.json`` measures them.
"""

from __future__ import annotations

import json
from pathlib import Path

from attnlens.benchmark.gpu_tables import tables

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES = DOCS / "performance.md", DOCS / "gpu.json"
BEGIN, END = "<!-- tables of gpu.json -->", "<!-- end of the tables -->"


def with_tables(page: str) -> str:
    """Return the text of a page with the tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = tables(json.loads(FIGURES.read_text(encoding="utf-8")))
    return f"{before}{BEGIN}\n\n{found}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
