"""Links between files lead somewhere, and the reference documents what is public."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import attnlens

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import check_site
import gpu_page
import reference_pages

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(file.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "demo_images/*.md", "notebooks/*.ipynb")
    for file in ROOT.glob(pattern)
)
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
# pages that are written when the site is built
REFERENCE = {ROOT / "docs" / n for n in re.findall(r"reference/\w+\.md", NAVIGATION)}
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def markdown(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return FENCED.sub("", text)


def anchors(file: Path) -> set[str]:
    plain = (re.sub(r"[^\w\- ]", "", h.lower()).strip() for h in HEADING.findall(markdown(file)))
    return {heading.replace(" ", "-") for heading in plain}


def dead_links(file: Path) -> list[str]:
    dead = []
    for link in LINK.findall(markdown(file)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if target in REFERENCE:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("name", FILES)
def test_links_between_files_lead_somewhere(name):
    assert dead_links(ROOT / name) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# What it does\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#what-it-does) [b](#here) [c](https://example.org/x)\n"
        "[d](other.md#gone) [e](gone.md) ![f](gone.png) [g](#there)\n```\n[h](code.md)\n```\n"
    )
    assert dead_links(page) == ["other.md#gone", "gone.md", "gone.png", "#there"]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".md")])
def test_source_files_that_are_named_exist(name):
    """Paths are those from the root of the repository, or of the package."""
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / name).read_text(encoding="utf-8"))
    gone = [n for n in named if not any((top / n).is_file() for top in (ROOT, ROOT / "attnlens"))]
    assert [n for n in gone if "NAME" not in n] == []


def test_every_page_is_in_the_navigation():
    named = re.findall(r": (\S+\.md)$", NAVIGATION, re.MULTILINE)
    pages = {f.name for f in (ROOT / "docs").glob("*.md")}
    assert {n for n in named if not n.startswith("reference/")} == pages


def test_the_reference_documents_what_is_public(tmp_path):
    files = reference_pages.write(tmp_path)
    text = "\n".join(f.read_text() for f in files)
    assert all(f"reference/{f.name}" in NAVIGATION for f in files)
    modules = [attnlens, *(getattr(attnlens, n) for n in attnlens.__all__)]
    modules += [getattr(attnlens.lenses, n) for n in attnlens.lenses.__all__]
    for module in (m for m in modules if isinstance(m, ModuleType)):
        for name in module.__all__:
            if not isinstance(getattr(module, name), ModuleType):
                assert f"heading: {module.__name__}.{name}\n" in text


def test_the_tables_of_the_gpu_benchmark_are_those_of_its_figures():
    page = gpu_page.PAGE.read_text(encoding="utf-8")
    assert page.count("| way |") >= 2
    assert gpu_page.with_tables(page) == page


def test_every_family_is_listed(capsys):
    from attnlens.cli.main import main
    from attnlens.models.families import FAMILIES

    page = (ROOT / "docs" / "families.md").read_text()
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    for name, family in FAMILIES.items():
        (row,) = [line for line in page.splitlines() if f"| `{name}` |" in line]
        assert family.name in row
        _, _, _, _, insertion, video, *_ = row.split("|")
        assert insertion.strip().startswith("refused") == bool(family.no_insertion)
        assert (video.strip() == "yes") == family.videos
        (line,) = [line for line in printed.splitlines() if f" {name} " in line]
        assert line.startswith(family.name)
        assert ("refused" in line) == bool(family.no_insertion)


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_what_would_be_loaded_from_elsewhere_is_found(tmp_path):
    (tmp_path / "style.css").write_text("a { background: url(here.png) } @import '//x.org/a.css';")
    (tmp_path / "index.html").write_text(
        '<a href="https://a.org">a link</a><link rel="canonical" href="https://b.org">'
        '<link rel="stylesheet" href="https://c.org/c.css"><script src="//d.org/d.js"></script>'
        '<img src="here.png">'
    )
    assert check_site.remote_assets(tmp_path) == [
        "index.html: https://c.org/c.css",
        "index.html: //d.org/d.js",
        "style.css: //x.org/a.css",
    ]
