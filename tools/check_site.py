"""Check that the built documents load no script, style, font or image from another host."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).parents[1] / "site"
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest"}
REMOTE_IN_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.addresses += [given[name] for name in ("src", "data", "poster") if name in given]
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.addresses.append(given.get("href", ""))


def remote_assets(folder: Path) -> list[str]:
    """Return ``FILE: ADDRESS`` for everything that a browser would fetch from another host."""
    found = []
    for file in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        text = file.read_text(encoding="utf-8")
        addresses = REMOTE_IN_STYLE.findall(text)
        if file.suffix == ".html":
            loaded = _Loaded()
            loaded.feed(text)
            addresses += [a for a in loaded.addresses if re.match(r"(https?:)?//", a)]
        found += [f"{file.relative_to(folder)}: {address}" for address in addresses]
    return found


if __name__ == "__main__":
    if not (SITE / "index.html").is_file():
        sys.exit(f"{SITE} holds no index.html: build the documents first")
    if lines := remote_assets(SITE):
        sys.exit("\n".join(["Loaded from elsewhere:", *lines]))
