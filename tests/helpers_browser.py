"""A browser for the tests of pages: found, started once for a module, and watched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REQUIRED = os.environ.get("ATTNLENS_BROWSER_TESTS") == "required"


def executable() -> str | None:
    """The browser: what ``ATTNLENS_BROWSER`` names, or the first Chromium on the path."""
    named = os.environ.get("ATTNLENS_BROWSER")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def lacking(reason: str) -> None:
    """Skip, or fail where ``ATTNLENS_BROWSER_TESTS=required``."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for a module: Playwright's event loop must not run in other tests."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed: pip install playwright (its browsers are not needed)")
    path = executable()
    if path is None:
        named = os.environ.get("ATTNLENS_BROWSER")
        sought = f"ATTNLENS_BROWSER={named}" if named else ", ".join(NAMES)
        lacking(f"no browser was found ({sought}): install Debian's chromium, or name one")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for the superuser, as whom containers run
        one = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield one
        one.close()


class Watched:
    """A tab, and all that it did that a page must not do."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.wrongs: list[str] = []
        page.set_default_timeout(20_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: self.wrongs.append(f"console {said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("popup", lambda _: self.wrongs.append("a window was opened"))

    def _dialog(self, dialog: Any) -> None:
        self.wrongs.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(self) -> None:
        """Fail if something was written to the console, thrown, asked, or fetched."""
        assert not self.wrongs
        assert not [
            url
            for url in self.requests
            if not url.startswith(("file:", "data:", "blob:", "about:"))
        ]


@contextmanager
def tab(browser: Any, **options: Any) -> Iterator[Any]:
    """A new tab, checked when it closes; options are those of ``browser.new_context``."""
    options = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **options}
    context = browser.new_context(**options)
    try:
        watched = Watched(context.new_page())
        yield watched.page
        watched.page.wait_for_timeout(50)  # what is on its way to the console
        watched.check()
    finally:
        context.close()


@contextmanager
def opened(browser: Any, file: Path, fragment: str = "", **options: Any) -> Iterator[Any]:
    """A tab with a page that is drawn; it may have loaded its own file alone."""
    with tab(browser, **options) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + fragment)
        page.wait_for_selector("#attnlens[data-ready]")
        yield page
        others = [url for url in asked if not url.startswith(("data:", "blob:"))]
        assert {url.partition("#")[0] for url in others} <= {file.as_uri()}


def settle(page: Any) -> None:
    """Wait until what was asked for is unpacked and drawn."""
    page.wait_for_function("() => !document.querySelector('[aria-busy]')")


SET_HASH = """async (hash) => {
  const told = new Promise((resolve) => addEventListener("hashchange", resolve, { once: true }));
  if (location.hash.replace(/^#/, "") === hash) return;
  location.hash = hash;
  await told;
  while (document.querySelector("[aria-busy]")) await new Promise((done) => setTimeout(done, 2));
}"""


def choose(page: Any, **state: Any) -> None:
    """Show a state by the hash of the address."""
    page.evaluate(SET_HASH, "&".join(f"{key}={value}" for key, value in state.items()))


def readout(page: Any) -> dict[str, list[str]]:
    """The table "At the cursor": the texts of a row's cells, by its key."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("tr[data-key]")].map((row) =>
          [row.dataset.key, [...row.querySelectorAll("td")].map((cell) => cell.textContent)]))"""
    )


def number(text: str) -> float:
    """A number as a page shows it; NaN for a dash."""
    return float("nan") if text == "–" else float(text)
