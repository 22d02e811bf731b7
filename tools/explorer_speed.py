"""Measure the explorer's page of a large run in a browser: its size, first paint, and cursor moves.

    python tools/explorer_speed.py [--runs 5]

The run is synthetic and has the shape of a 7B model's (28 layers, 28 heads, 1,000 steps, 1,300
visual tokens, maps of all layers and of 16 heads; ``tests/helpers_explorer.py``). It needs
Playwright, and Chromium on the path or named by ``ATTNLENS_BROWSER``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers_browser import executable
from helpers_explorer import large_trace

MOVES = 40
MOVE = """async (moves) => {
  const answer = document.querySelector(".answer");
  const found = [];
  for (let i = 0; i < moves; i += 1) {
    const start = performance.now();
    answer.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    // the task after the next frame: when what was changed has been drawn
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    found.push(performance.now() - start);
  }
  return found;
}"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
DRAWN = """() => new Promise((done) => {
  const root = document.getElementById("attnlens");
  const look = () => (root.dataset.ready ? done(performance.now()) : requestAnimationFrame(look));
  look();
})"""


def photograph(width: int, height: int) -> Image.Image:
    """Draw a picture that compresses about as well as a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


def measure(page: Page, address: str) -> tuple[float, float, list[float]]:
    """Open a page; return milliseconds to first paint, to all of it, and of each move."""
    page.goto(address, wait_until="commit")
    drawn = page.evaluate(DRAWN)
    paint = page.evaluate(PAINT)
    page.locator(".answer").focus()
    return paint, drawn, page.evaluate(MOVE, MOVES)


def main() -> None:
    """Write the page, open it several times, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often it is opened (5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start = time.perf_counter()
        trace = large_trace()
        made = time.perf_counter()
        image = photograph(1400, 728)
        path = trace.to_html(Path(folder) / "large.html", images=image)
        written = time.perf_counter()
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        found = []
        for _ in range(options.runs):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            found.append(measure(page, path.as_uri()))
            page.close()
        moves = sorted(move for _, _, run in found for move in run)
        rows = [
            ("browser", browser.version),
            ("writing the page", f"{written - made:.1f} s (making the run: {made - start:.1f} s)"),
            ("size", f"{path.stat().st_size / 1e6:.1f} MB"),
            ("first paint, median", f"{statistics.median(one[0] for one in found):.0f} ms"),
            ("all drawn, median", f"{statistics.median(one[1] for one in found):.0f} ms"),
            ("cursor move, median", f"{statistics.median(moves):.1f} ms"),
            ("cursor move, 95th percentile", f"{moves[int(0.95 * len(moves))]:.1f} ms"),
        ]
        browser.close()
    for name, value in rows:
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
