"""Pages of the explorer in a real browser: what they show, what they answer to, their safety."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import picture
from helpers_browser import (
    SET_HASH,
    browser,  # noqa: F401
    choose,
    number,
    opened,
    readout,
    settle,
    tab,
)
from helpers_explorer import large_trace
from PIL import Image

import attnlens
from attnlens import measures
from attnlens.explorer import page_html, view
from attnlens.explorer.index import index_contents, write_index
from attnlens.explorer.page import script, stylesheet
from attnlens.interventions import At, Copy
from attnlens.measures.definitions import DEFINITIONS
from attnlens.models.small import small_vlm
from attnlens.segments import SEGMENTS
from attnlens.testbed import held_out_sample

ANSWER = ".answer"
CURSOR = "#attnlens .answer >> nth=0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, testbed):
    """A run of the testbed, its twin under COPY, all that is known of them, and their page."""
    folder = tmp_path_factory.mktemp("explorer")
    sample = held_out_sample(0, 0, "back")
    sample.scene.draw().save(folder / "scene.png")
    prompt = testbed.prompt(folder / "scene.png", sample.question.text, mode="back")
    trace = attnlens.replay(testbed, prompt, sample.answer, visual_map=True)
    copy = Copy(when=At("<back>"))
    twin = attnlens.replay(testbed, prompt, sample.answer, copy, visual_map=True)
    known = {
        "dependence": attnlens.dependence(testbed, trace, prompt=prompt),
        "expected": sample.question.answer,
        "truth": sample.truth(trace.tokens),
    }
    page = trace.to_html(folder / "twins.html", twins={"copy": twin}, **known)
    alone = trace.to_html(folder / "alone.html", **known)
    return SimpleNamespace(
        trace=trace, twin=twin, page=page, alone=alone, folder=folder, sample=sample, **known
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A synthetic trace with the maps of three heads, and its page."""
    trace = large_trace(steps=40, layers=4, heads=5, rows=4, columns=6, mapped=3)
    path = tmp_path_factory.mktemp("small") / "small.html"
    grey = Image.new("RGB", (168, 112), (90, 90, 90))
    return SimpleNamespace(trace=trace, page=trace.to_html(path, images=grey))


def contents_of(page) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    start = text.index('id="attnlens-data">') + len('id="attnlens-data">')
    return json.loads(text[start : text.index("</script>", start)])


# Numbers


@dataclass(frozen=True)
class At50:
    """What is chosen on a page."""

    first: int
    last: int
    definition: str
    layers: tuple[int, ...] | None
    head: int | None
    copied: bool
    sink: bool

    def hash(self) -> dict[str, Any]:
        """What is chosen, for the hash of an address."""
        state: dict[str, Any] = {"from": self.first, "to": self.last, "definition": self.definition}
        if self.layers is not None:
            state["layers"] = ".".join(map(str, self.layers))
        if self.head is not None:
            state["head"] = self.head
        return state | {key: str(getattr(self, key)).lower() for key in ("copied", "sink")}


@functools.cache
def log_odds(trace):
    return measures.log_odds(trace)


@functools.cache
def shares(trace, definition, reduction, copied):
    share = measures.visual_share(trace, definition, reduction=reduction, include_copied=copied)
    return share.reindex(step=trace.data["step"])


def random_cursor(random, trace) -> At50:
    sizes = trace.data.sizes
    first = int(random.integers(sizes["step"]))
    last = first if random.random() < 0.5 else int(random.integers(first, sizes["step"]))
    layers, head = None, None
    kind = random.random()
    if kind < 0.7:
        count = 1 if kind < 0.5 else int(random.integers(2, sizes["layer"] + 1))
        chosen = random.choice(sizes["layer"], count, replace=False)
        layers = tuple(sorted(map(int, chosen)))
        if kind < 0.35:
            head = int(random.integers(sizes["head"]))
    return At50(
        first,
        last,
        str(random.choice(list(DEFINITIONS))),
        layers,
        head,
        bool(random.random() < 0.5),
        bool(random.random() < 0.7),
    )


def expected(trace, at: At50, errors, dependence=None) -> dict[str, tuple[float, float]]:
    """The numbers of the table, and how far each may be off: what the page states."""
    data = trace.data
    steps = slice(at.first, at.last + 1)
    layers = list(range(data.sizes["layer"])) if at.layers is None else list(at.layers)
    heads = list(range(data.sizes["head"])) if at.head is None else [at.head]
    mean = lambda values: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan  # noqa: E731
    found: dict[str, tuple[float, float]] = {}

    one = DEFINITIONS[at.definition]
    by_head = one.per_head and at.head is not None
    copied = at.copied and one.counts_copied
    share = shares(trace, at.definition, "none" if by_head else "layer", copied)
    shown = share.isel(step=steps, layer=layers, **({"head": at.head} if by_head else {}))
    found["share"] = mean(shown.values), errors["mass"] if by_head else 0.0
    if at.layers is None:  # the definition's own mean
        whole = shares(trace, at.definition, "mean", copied)
        assert found["share"][0] == pytest.approx(mean(whole.values[steps]), nan_ok=True, rel=1e-4)

    mass = data["mass"].isel(step=steps, layer=layers, head=heads).values.astype(float)
    error = errors["mass"]
    if not at.sink:
        mass = mass / (1 - mass[..., SEGMENTS.index("sink")])[..., None]
        mass = mass if at.head is None else np.full_like(mass, np.nan)  # 8 bits are too few
        error = 0.0
    for place, name in enumerate(SEGMENTS):
        left_out = name == "sink" and not at.sink
        found[f"mass-{name}"] = (math.nan if left_out else mean(mass[..., place])), error
        found[f"keys-{name}"] = float(data["keys"].values[steps, place].mean()), 0.0

    split = log_odds(trace)
    for term in ("log_odds", "counts", "preference"):
        values = split[term]
        if "layer" in values.dims:
            values = values.isel(layer=layers)
        values = values.where(np.isfinite(values))
        over = [dim for dim in ("head", "layer") if dim in values.dims]
        for dim in over:
            values = values.mean(dim)
        found[term] = mean(values.values[steps]), 1e-6

    if dependence is not None:
        for reference in dependence["reference"].values:
            for name in ("kl", "hellinger", "log_ratio"):
                values = dependence[name].sel(reference=reference).values[steps]
                found[f"{name}-{reference}"] = mean(values), 1e-9
    weights = shown_map(data, at)[steps]
    found["map-total"] = float(weights.sum(-1).mean()), 1e-6
    return found


def shown_map(data, at: At50) -> np.ndarray:
    """The map that a page shows: float [step, visual]."""
    of_layers = data["visual_map"]
    if at.layers is None:
        return of_layers.mean("layer").values
    if at.head is not None and "visual_map_by_head" in data:
        pair = int(data["layer"].values[at.layers[0]]), at.head
        pairs = zip(data["mapped_layer"].values, data["mapped_head"].values, strict=True)
        for place, mapped in enumerate(pairs):
            if tuple(map(int, mapped)) == pair:
                return data["visual_map_by_head"].values[:, place]
    return of_layers.isel(layer=list(at.layers)).mean("layer").values


def check(cells: dict[str, list[str]], wanted: dict[str, tuple[float, float]], column: int = 0):
    """Compare a column of the table; four digits are shown."""
    numbers = set(cells) - {"step", "query", "predicted", "patch"}
    for key in sorted(numbers):
        text = cells[key][column]
        if key not in wanted:
            assert text == "–", key
            continue
        value, error = wanted[key]
        near = error + 5.1e-4 * abs(value) + 1e-6
        assert number(text) == pytest.approx(value, abs=near, nan_ok=True), key
    assert set(wanted) <= numbers


@pytest.mark.slow
def test_numbers_at_fifty_cursors_are_those_of_python(browser, runs):  # noqa: F811
    errors = contents_of(runs.page)["errors"]
    random = np.random.default_rng(0)
    with opened(browser, runs.page) as page:
        for _ in range(50):
            at = random_cursor(random, runs.trace)
            choose(page, **at.hash())
            cells = readout(page)
            steps = f"{at.first}" if at.first == at.last else f"{at.first}-{at.last}"
            assert cells["step"] == [steps, steps, ""]
            if at.first == at.last:
                for key in ("query", "predicted"):
                    token = str(runs.trace.data[f"{key}_token"].values[at.first])
                    assert cells[key][0] == token.replace("\n", "↵")
            wanted = expected(runs.trace, at, errors, runs.dependence)
            beside = expected(runs.twin, at, errors)
            check(cells, wanted)
            check(cells, beside, 1)
            differences = {
                key: (beside[key][0] - value, error + beside[key][1] + 2e-6)
                for key, (value, error) in wanted.items()
                if key in beside
            }
            check(cells, differences, 2)


def test_numbers_of_single_heads_and_their_maps(browser, small):  # noqa: F811
    errors = contents_of(small.page)["errors"]
    random = np.random.default_rng(1)
    with opened(browser, small.page) as page:
        pairs = list(
            zip(
                small.trace.data["mapped_layer"].values.tolist(),
                small.trace.data["mapped_head"].values.tolist(),
                strict=True,
            )
        )
        for number_of in range(12):
            at = random_cursor(random, small.trace)
            if number_of < 6:
                layer, head = pairs[number_of % 3]
                at = replace(at, layers=(layer,), head=head)
            choose(page, **at.hash(), patch=number_of)
            cells = readout(page)
            check(cells, expected(small.trace, at, errors))
            weight = shown_map(small.trace.data, at)[at.first : at.last + 1, number_of].mean()
            shown = number(cells["patch"][0])
            assert shown == pytest.approx(weight, abs=errors["maps"] + 1e-6, rel=5.1e-4)


# What a page answers to


def tokens(page, run: int = 0):
    return page.locator(ANSWER).nth(run).locator(".token")


def steps(page) -> str:
    return readout(page)["step"][0]


def state(page) -> str:
    return page.locator("output.about").inner_text()


def test_the_mouse_moves_pins_and_takes_a_span(browser, runs):  # noqa: F811
    words = runs.trace.tokens
    with opened(browser, runs.alone) as page:
        # look-back: a token owns the step that it is fed to
        tokens(page).nth(10).hover()
        assert steps(page) == "11"
        assert readout(page)["query"][0] == words[10]
        assert tokens(page).nth(10).get_attribute("aria-selected") == "true"
        tokens(page).nth(12).click()
        tokens(page).nth(20).hover()
        assert steps(page) == "13"
        assert "pinned" in tokens(page).nth(12).get_attribute("class")
        tokens(page).nth(12).click()
        tokens(page).nth(20).hover()
        assert steps(page) == "21"
        page.keyboard.down("Shift")
        tokens(page).nth(30).hover()
        page.mouse.down()
        tokens(page).nth(24).hover()
        assert steps(page) == "25-31"
        tokens(page).nth(36).hover()
        page.mouse.up()
        page.keyboard.up("Shift")
        tokens(page).nth(3).hover()
        assert steps(page) == "31-37"
        selected = page.locator('.token[aria-selected="true"]').count()
        assert selected == 7
        # of the token that is predicted, a definition that says so
        page.select_option("[data-state=definition] select", "mean-weight")
        settle(page)
        owner = DEFINITIONS["mean-weight"].step_owner
        assert steps(page) == "31-37"
        place = 31 if owner == "predicted" else 30
        assert tokens(page).nth(place).get_attribute("aria-selected") == "true"


def test_the_curve_moves_pins_and_takes_a_span(browser, runs):  # noqa: F811
    count = runs.trace.data.sizes["step"]
    with opened(browser, runs.alone) as page:
        chart = page.locator("svg.chart")
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()

        def at(step):
            return 52 + step / (count - 1) * (box["width"] - 60), 100

        chart.hover(position=dict(zip("xy", at(40), strict=True)))
        assert steps(page) == "40"
        x, y = at(50)
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.keyboard.down("Shift")
        page.mouse.down()
        x, y = at(60)
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.up()
        page.keyboard.up("Shift")
        assert steps(page) == "50-60"
        shown = page.locator("ul.names b").inner_text()
        share = measures.visual_share(runs.trace, "look-back").sel(step=slice(50, 60))
        assert number(shown) == pytest.approx(float(share.mean()), rel=6e-4)
        page.keyboard.press("Tab")
        for kind in ("segments", "split", "dependence"):
            page.select_option("select[aria-label='what is drawn']", kind)
            settle(page)
            lines = page.locator("ul.names li").count()
            assert lines == {"segments": 7, "split": 3, "dependence": 4}[kind]
            assert chart.locator("path").count() == lines
        page.select_option("select[aria-label='what is drawn']", "segments")
        page.get_by_label("stacked").check()
        settle(page)
        tops = chart.locator("path").last.get_attribute("d")
        assert min(float(y) for y in tops[1:-1].replace("L", " ").split()[1::2]) >= 17.5
        page.get_by_label("with sink").uncheck()
        settle(page)
        assert page.locator("ul.names li").count() == 6


def test_keys_move_pin_take_spans_and_let_go(browser, runs):  # noqa: F811
    last = runs.trace.data.sizes["step"] - 1
    with opened(browser, runs.alone) as page:
        page.locator(ANSWER).focus()
        for keys, wanted in [
            ("Home", "0"),
            ("ArrowRight", "1"),
            ("ArrowDown", "11"),
            ("ArrowLeft", "10"),
            ("Shift+ArrowRight", "10-11"),
            ("Shift+ArrowRight", "10-12"),
            ("Shift+ArrowLeft", "10-11"),
            ("Shift+ArrowLeft", "10"),
            ("Shift+ArrowLeft", "9-10"),
            ("Shift+Home", "0-10"),
            ("Shift+End", f"10-{last}"),
            ("End", f"{last}"),
            ("ArrowRight", f"{last}"),
            ("PageUp", f"{last - 50}"),
            ("Home", "0"),
            ("Escape", "0"),
            ("Enter", "0"),
        ]:
            page.keyboard.press(keys)
            assert steps(page) == wanted, keys
        tokens(page).nth(5).hover()
        assert steps(page) == "0"  # pinned
        page.keyboard.press("Escape")
        tokens(page).nth(6).hover()
        assert steps(page) == "7"
        tokens(page).nth(40).click()
        page.keyboard.press("Shift+ArrowRight")
        assert steps(page) == "41-42"  # a span begins where the mouse has put the cursor
        page.locator("[data-state=from] input").fill("3")
        page.keyboard.press("Enter")
        assert steps(page) == "3"
        page.locator("[data-state=to] input").fill("5")
        page.keyboard.press("Enter")
        assert steps(page) == "3-5"


def cell(page, layer, head, heads=4, grid=0):
    """Where a cell of the grid is on its canvas; head None is the layer's number."""
    canvas = page.locator(".grid canvas:not(.bar)").nth(grid)
    side = (canvas.bounding_box()["width"] - 32) / heads
    x = 12 if head is None else 31 + side * (head + 0.5)
    return canvas, {"x": x, "y": 1 + side * (layer + 0.5)}


def click_cell(page, layer, head, **options):
    canvas, position = cell(page, layer, head)
    canvas.click(position=position, **options)
    settle(page)


def test_heads_layers_and_ranges_of_layers(browser, runs):  # noqa: F811
    mass = runs.trace.data["mass"].sel(segment="visual")
    with opened(browser, runs.alone) as page:
        choose(page, definition="mass", **{"from": 20})
        canvas, position = cell(page, 2, 1)
        canvas.hover(position=position)
        said = page.locator(".grid output").inner_text()
        assert said.startswith("layer 2, head 1: ")
        assert float(said.split(": ")[1]) == pytest.approx(float(mass[20, 2, 1]), abs=0.004)
        click_cell(page, 2, 1)
        assert state(page) == "About layer 2, head 1."
        share = number(readout(page)["share"][0])
        assert share == pytest.approx(float(mass[20, 2, 1]), abs=0.004)
        note = page.locator("[aria-label=pictures] .legend").inner_text()
        assert "map_heads=[(2, 1)] records it" in note
        page.select_option("[data-state=definition] select", "look-back")
        settle(page)
        assert "look-back has no value for one head" in state(page)
        click_cell(page, 2, 1)
        assert state(page) == "About all layers and heads."
        click_cell(page, 1, None)
        assert state(page) == "About layer 1."
        click_cell(page, 3, None, modifiers=["Shift"])
        assert state(page) == "About layers 1, 2, 3."
        click_cell(page, 2, None, modifiers=["Control"])
        assert state(page) == "About layers 1, 3."
        by_layer = measures.visual_share(runs.trace, "look-back", reduction="layer").sel(step=20)
        wanted = float(by_layer.isel(layer=[1, 3]).mean())
        assert number(readout(page)["share"][0]) == pytest.approx(wanted, rel=6e-4)
        page.locator(ANSWER).focus()
        page.keyboard.press("Escape")
        settle(page)
        assert state(page) == "About all layers and heads."
        # the same by keys
        canvas.focus()
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        settle(page)
        assert state(page).startswith("About layer 1, head 2")
        page.keyboard.press("l")
        settle(page)
        assert state(page) == "About layer 1."
        # sorted: the largest comes first
        page.select_option("[data-state=definition] select", "mass")
        page.select_option("[data-state=sort] select", "mass")
        settle(page)
        click_cell(page, 0, 0)
        best = int(mass.values[20, 0].argmax())
        assert state(page) == f"About layer 0, head {best}."


def test_a_click_on_a_patch_lights_up_the_tokens_that_looked(browser, runs):  # noqa: F811
    data = runs.trace.data
    rows, columns = (int(data[f"visual_{name}"].max()) + 1 for name in ("row", "column"))
    weights = data["visual_map"].mean("layer").values
    visual = int(weights.max(0).argmax())
    with opened(browser, runs.alone) as page:
        canvas = page.locator("[aria-label=pictures] canvas")
        box = canvas.bounding_box()
        row, column = divmod(visual, columns)
        place = {
            "x": (column + 0.5) / columns * box["width"],
            "y": (row + 0.5) / rows * box["height"],
        }
        canvas.hover(position=place)
        assert (
            f"visual token {visual}: " in page.locator("[aria-label=pictures] .under").inner_text()
        )
        canvas.click(position=place)
        settle(page)
        assert (
            "weight on the chosen patch" in page.locator("[aria-label=answer] .legend").inner_text()
        )
        alphas = page.evaluate(
            """() => [...document.querySelectorAll(".token")].map((token) =>
              Number(getComputedStyle(token).backgroundColor.match(/[\\d.]+(?=\\)$)/)?.[0] ?? 0))"""
        )
        fed = weights[1:, visual]  # a token is coloured by the step that it is fed to
        assert int(np.argmax(alphas)) == int(fed.argmax())
        assert np.asarray(alphas)[:-1] == pytest.approx(
            0.55 * fed / weights[:, visual].max(), abs=5e-3
        )
        assert "patch" in readout(page)
        page.select_option("select[aria-label='what is drawn']", "patch")
        settle(page)
        assert page.locator("ul.names li").count() == 1
        canvas.focus()
        page.keyboard.press("Escape")
        settle(page)
        assert "patch" not in readout(page)
        for key in ("ArrowRight", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        settle(page)
        name = f"map: visual token {columns + 1}"
        assert page.locator("tr[data-key=patch] th").inner_text() == name


def test_twins_share_the_cursor_and_show_the_difference(browser, runs):  # noqa: F811
    event = runs.twin.attrs["interventions"][0]
    with opened(browser, runs.page) as page:
        assert page.locator(ANSWER).count() == 2
        marks = page.locator(".event")
        assert marks.count() == 1
        assert marks.inner_text() == f"▼ copy +{event['inserted']}"
        tokens(page, 1).nth(90).hover()
        for run in (0, 1):
            assert tokens(page, run).nth(90).get_attribute("aria-selected") == "true"
        cells = readout(page)["share"]
        one, other = (
            float(measures.visual_share(trace, "look-back").sel(step=91))
            for trace in (runs.trace, runs.twin)
        )
        assert [number(text) for text in cells] == pytest.approx(
            [one, other, other - one], rel=6e-4, abs=1e-6
        )
        assert number(readout(page)["keys-copied"][2]) == len(event["kept"])
        assert page.locator("ul.names li").count() == 3
        assert page.locator(".grid").count() == 3
        page.select_option("[data-state=run] select", "1")
        page.select_option("[data-state=other] select", "-1")
        settle(page)
        assert page.locator(ANSWER).count() == 1
        assert len(readout(page)["share"]) == 1
        page.get_by_label("copied tokens count as image").check()
        settle(page)
        counted = measures.visual_share(runs.twin, "look-back", include_copied=True).sel(step=91)
        assert number(readout(page)["share"][0]) == pytest.approx(float(counted), rel=6e-4)


# The address


@pytest.mark.slow
def test_a_copied_address_shows_the_same(browser, runs):  # noqa: F811
    with opened(browser, runs.page) as page:
        click_cell(page, 1, 3)
        page.select_option("[data-state=definition] select", "mass")
        page.select_option("select[aria-label='what is drawn']", "segments")
        page.get_by_label("with sink").uncheck()
        page.select_option("[data-state=scale] select", "run")
        page.get_by_label("interpolate").check()
        settle(page)
        page.locator(ANSWER).first.focus()
        for key in ("Home", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
            page.keyboard.press(key)
        page.locator("[aria-label=pictures] canvas").first.click(position={"x": 40, "y": 40})
        settle(page)
        page.wait_for_function("() => location.hash.includes('patch=')")
        page.wait_for_timeout(250)
        address, shown, about = page.url, readout(page), state(page)
        picture = page.locator("[aria-label=pictures] canvas").first.screenshot()
    assert "from=10" in address
    assert "to=12" in address
    with opened(browser, runs.page, "#" + address.partition("#")[2]) as page:
        assert readout(page) == shown
        assert state(page) == about
        assert page.locator("[data-state=scale] select").input_value() == "run"
        assert page.get_by_label("interpolate").is_checked()
        assert not page.get_by_label("with sink").is_checked()
        assert page.locator("[aria-label=pictures] canvas").first.screenshot() == picture
        page.wait_for_timeout(250)
        assert page.url == address


NONSENSE = [
    "from=-1",
    "from=1e9&to=-3",
    "from=NaN",
    "run=7",
    "other=99",
    "definition=constructor",
    "layers=0.99",
    "layers=0.0.x",
    "head=2",
    "patch=100000",
    "chart=__proto__",
    "sort=toString",
    "opacity=1000",
    "scale=<script>alert(1)</script>",
    "%",
    "&&==&=&%E0%A4%A",
    "__proto__=1&constructor=2",
    "from=" + "9" * 5000,
]


def test_an_address_that_makes_no_sense_is_ignored(browser, runs):  # noqa: F811
    with opened(browser, runs.page) as page:
        first = readout(page)
        about = state(page)
        for hash_ in NONSENSE:
            page.evaluate("() => history.replaceState(null, '', '#definition=mass')")
            page.evaluate(SET_HASH, hash_)
            assert readout(page) == first, hash_
            assert state(page) == about, hash_


# Strangers' texts

ATTACKS = [
    "<script>window.hit = 1; alert(1)</script>",
    '<img src=x onerror="window.hit = 1; alert(2)">',
    "</script><script>window.hit = 1; alert(3)</script>",
    "<!--<script>",
    "</title><svg onload=alert(4)>",
    "'\"><iframe src=javascript:alert(5)>",
    "\u2028alert(6)\u2029",
    "\u202ereversed\u202c \u2066isolated\u2069",
    "\x00\x01\x1b[31m\x7f",
    '{"runs": [], "kind": "index"}',
    "${alert(7)} {{constructor.constructor('alert(8)')()}}",
    '=HYPERLINK("http://example.org")',
    "a" * 100_000,
    "\ud83d\ude00\u200d\u0301" * 50,
]


def hostile_trace(name: str = ATTACKS[1]):
    trace = large_trace(steps=3 * len(ATTACKS), layers=2, heads=3, rows=3, columns=4, mapped=1)
    texts = np.array([ATTACKS[i % len(ATTACKS)] for i in range(trace.data.sizes["step"])])
    data = trace.data.assign_coords(
        predicted_token=("step", texts), query_token=("step", np.roll(texts, 1))
    )
    record = {**data.attrs["images"][0], "path": f"/nowhere/{ATTACKS[1]}{ATTACKS[7]}.png"}
    data.attrs = {
        **data.attrs,
        "model": ATTACKS[0] + ATTACKS[7],
        "mode": ATTACKS[2],
        "question": ATTACKS[2] + ATTACKS[1] + ATTACKS[6],
        "images": [record],
        "interventions": [{"intervention": name, "step": 4, "inserted": 0}],
    }
    return attnlens.Trace(data)


def nothing_was_injected(page) -> None:
    assert page.evaluate("() => window.hit") is None
    assert page.locator("script").count() == 2
    for name in ("img", "iframe", "object", "embed", "link", "form", "svg[onload]", "base"):
        assert page.locator(name).count() == 0, name
    handlers = """() => [...document.querySelectorAll("*")].flatMap((one) => [...one.attributes])
      .filter((one) => one.name.startsWith("on") || /^\\s*javascript:/i.test(one.value)).length"""
    assert page.evaluate(handlers) == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_texts_of_strangers_are_only_shown(browser, tmp_path, width):  # noqa: F811
    trace = hostile_trace()
    twins = {text[:80]: hostile_trace(text) for text in (ATTACKS[0], ATTACKS[2])}
    path = tmp_path / "<img src=x onerror=alert(1)>.html"
    trace.to_html(path, twins=twins, expected=ATTACKS[0])
    with opened(browser, path, viewport={"width": width, "height": 800}) as page:
        nothing_was_injected(page)
        for place in (0, 2, 6, 12):
            choose(page, **{"from": place + 1})
            assert readout(page)["step"][0] == str(place + 1)
        shown = tokens(page).all_inner_texts()
        assert shown[0] == ATTACKS[0]
        assert shown[2] == ATTACKS[2]
        assert shown[6].startswith("⟨U+2028⟩")
        assert shown[7].startswith("⟨U+202E⟩reversed⟨U+202C⟩")
        assert len(shown[12]) <= 2000
        assert "⟨U+202E⟩" in page.locator(".verdict").first.inner_text()
        assert ATTACKS[1] in page.locator("ul.lacks").inner_text()
        click_cell(page, 0, 0, **{}) if width > 390 else None
        page.locator("[aria-label=pictures] canvas").first.click(position={"x": 20, "y": 20})
        settle(page)
        nothing_was_injected(page)
        no_sideways_scroll(page)


def test_an_index_of_strangers_texts_is_only_shown(browser, tmp_path):  # noqa: F811
    row = {"mode": ATTACKS[0], "steps": 3, "curve": [0.1, None, 0.3], "definition": "mass"}
    rows = [
        {
            **row,
            "href": href,
            "name": text,
            "question": text,
            "answer": text,
            "expected": text,
            "right": None,
            "start": 0.1,
            "end": None,
        }
        for href, text in zip(
            ["javascript:alert(1)", "pages/../../x.html", "https://example.org/", "pages/1.html"]
            * 4,
            [*ATTACKS, "", "x"],
            strict=True,
        )
    ]
    path = tmp_path / "index.html"
    path.write_text(page_html(index_contents(rows, ATTACKS[2])), encoding="utf-8")
    with opened(browser, path, viewport={"width": 390, "height": 800}) as page:
        assert page.locator("ol.runs li").count() == len(rows)
        nothing_was_injected(page)
        hrefs = page.locator("ol.runs a").evaluate_all(
            "all => all.map((a) => a.getAttribute('href'))"
        )
        assert set(hrefs) == {None, "pages/1.html"}
        no_sideways_scroll(page)


# What is taken away from a page


def saved(page, kind: str):
    with page.expect_download() as download:
        page.locator(f"button[title^='Save']:text-is('{kind}')").click()
    path = download.value.path()
    return path.read_bytes(), download.value.suggested_filename


def test_exports_are_valid_files(browser, runs):  # noqa: F811
    with opened(browser, runs.page) as page:
        choose(page, **{"from": 20, "to": 24})
        content, name = saved(page, "PNG")
        assert name == "attnlens-step-20.png"
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.format == "PNG"
            assert len(image.getcolors(100_000)) > 10
        content, name = saved(page, "SVG")
        assert name.endswith(".svg")
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) == 3
        content, name = saved(page, "CSV")
        assert name.endswith(".csv")
        rows = list(csv.reader(io.StringIO(content.decode())))
        assert rows[0] == ["name", "untouched", "copy"]
        assert all(len(row) == 3 for row in rows)
        share = measures.visual_share(runs.trace, "look-back").sel(step=slice(20, 24))
        found = next(row for row in rows if row[0] == "image: look-back")
        assert float(found[1]) == pytest.approx(float(share.mean()), rel=1e-5)


def test_a_table_of_strangers_texts_runs_in_no_spreadsheet(browser, tmp_path):  # noqa: F811
    trace = hostile_trace()
    data = trace.data.assign_coords(
        predicted_token=("step", np.array(["=1+1", "+1", "-1", "@x", "\t=1", 'a"b,\nc'] * 7))
    )
    path = attnlens.Trace(data).to_html(tmp_path / "a.html")
    with opened(browser, path) as page:
        for place in range(6):
            choose(page, **{"from": place})
            content, _ = saved(page, "CSV")
            rows = dict(csv.reader(io.StringIO(content.decode())))
            assert rows["token predicted"][0] not in "=+-@\t\r"
        ElementTree.fromstring(saved(page, "SVG")[0])


# Many runs


def test_an_index_filters_sorts_and_opens_pages(browser, runs, tmp_path):  # noqa: F811
    folder = tmp_path / "runs"
    folder.mkdir()
    for name, trace in {"first": runs.trace, "second": runs.twin}.items():
        trace.save(folder / f"{name}.zarr")
        (folder / f"{name}.json").write_text(
            json.dumps(
                {
                    "expected": "no" if name == "second" else runs.expected,
                    "question": trace.attrs["question"],
                    "parts": [],
                }
            )
        )
    assert write_index(folder, tmp_path / "out") == (2, 0)
    with tab(browser) as page:
        page.goto((tmp_path / "out" / "index.html").as_uri())
        page.wait_for_selector("[data-ready]")
        rows = page.locator("ol.runs li")
        assert rows.count() == 2
        page.select_option("select[aria-label='which answers']", "false")
        assert rows.count() == 1
        assert "second" in rows.inner_text()
        page.select_option("select[aria-label='which answers']", "")
        page.fill("input[type=search]", "FIRST")
        assert rows.count() == 1
        assert page.locator(".tools output").inner_text() == "1 of 2"
        page.fill("input[type=search]", "")
        ends = {
            name: float(measures.visual_share(trace, "look-back").values[-35:].mean())
            for name, trace in {"first": runs.trace, "second": runs.twin}.items()
        }
        page.select_option("select[aria-label=order]", "end")
        assert min(ends, key=ends.get) in rows.first.inner_text()
        no_sideways_scroll(page)
        page.select_option("select[aria-label=order]", "name")
        rows.first.locator("a").click()
        page.wait_for_selector("[data-ready] .answer")
        assert "".join(tokens(page).all_text_contents()) == runs.trace.text.replace("\n", "↵\n")


# For everyone


def no_sideways_scroll(page) -> None:
    wide, room = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


@pytest.mark.slow
def test_a_narrow_page_does_not_scroll_sideways(browser, runs, small):  # noqa: F811
    for path in (runs.page, runs.alone, small.page):
        with opened(browser, path, viewport={"width": 390, "height": 800}) as page:
            no_sideways_scroll(page)
            page.set_viewport_size({"width": 900, "height": 800})
            page.wait_for_timeout(100)
            no_sideways_scroll(page)


FOCUSABLE = "a[href], button, input, select, [tabindex='0']"


def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser, runs):  # noqa: F811
    with opened(browser, runs.page) as page:
        wanted = page.evaluate(
            f"""() => [...document.querySelectorAll("{FOCUSABLE}")]
              .filter((one) => one.checkVisibility())
              .map((one, i) => (one.dataset.number = i)).length"""
        )
        reached = set()
        for _ in range(wanted + 1):
            page.keyboard.press("Tab")
            number_of = page.evaluate("() => document.activeElement.dataset.number ?? null")
            reached.add(number_of)
        assert reached >= {str(i) for i in range(wanted)}
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        focusable = [
            node
            for node in nodes
            if not node["ignored"]
            and node["role"]["value"] != "RootWebArea"
            and any(p["name"] == "focusable" and p["value"]["value"] for p in node["properties"])
        ]
        assert len(focusable) >= wanted
        assert not [node["role"] for node in focusable if not node["name"]["value"].strip()]


CONTRASTS = """() => {
  const parse = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts[3] ?? 1 };
  };
  const over = (top, below) => top.rgb.map((c, i) => c * top.alpha + below[i] * (1 - top.alpha));
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const one of document.querySelectorAll("#attnlens, #attnlens *")) {
    const own = [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !one.checkVisibility()) continue;
    const chain = [];
    for (let up = one; up; up = up.parentElement) {
      chain.unshift(parse(getComputedStyle(up).backgroundColor));
    }
    const behind = chain.reduce((below, top) => over(top, below), [255, 255, 255]);
    const style = getComputedStyle(one);
    const text = over(parse(one instanceof SVGElement ? style.fill : style.color), behind);
    const [a, b] = [light(text), light(behind)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), `${one.tagName} ${one.textContent.slice(0, 30)}`]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_colour(browser, runs, scheme):  # noqa: F811
    with opened(browser, runs.page, color_scheme=scheme) as page:
        for state_ in ({"definition": "mass"}, {"definition": "mass", "patch": 3}):
            choose(page, **state_)
            found = page.evaluate(CONTRASTS)
            assert len(found) > 300
            assert not sorted(one for one in found if one[0] < 4.5)[:5]


def test_right_to_left_and_chinese_answers_are_laid_out(browser, tmp_path):  # noqa: F811
    words = ["<think>", "\n", "هناك", " ثلاث", " دوائر", "\n", "图中", "有三个", "圆形", "。"]
    trace = large_trace(steps=len(words), layers=2, heads=2, rows=2, columns=2, mapped=1)
    data = trace.data.assign_coords(predicted_token=("step", np.array(words)))
    data.attrs = {**data.attrs, "question": "كم دائرة في الصورة؟"}
    path = attnlens.Trace(data).to_html(tmp_path / "a.html")
    with opened(browser, path) as page:
        left = [box["x"] for box in map(lambda one: one.bounding_box(), tokens(page).all())]
        assert left[2] > left[3] > left[4]
        assert left[6] < left[7] < left[8]
        assert page.title() == "كم دائرة في الصورة؟"


def test_motion_is_not_used(browser, runs):  # noqa: F811
    with opened(browser, runs.alone, reduced_motion="reduce") as page:
        moving = """() => [...document.querySelectorAll("*")].map((one) => getComputedStyle(one))
          .filter((s) => s.animationName !== "none" || parseFloat(s.transitionDuration) > 0)
          .length"""
        assert page.evaluate(moving) == 0


# Other pictures


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["video", "tiles", "two images"])
def test_films_tiles_and_several_images(browser, tmp_path, kind):  # noqa: F811
    vlm = small_vlm("llava_next" if kind == "tiles" else "qwen2_5_vl")
    if kind == "video":
        film = [picture(140, 112, seed) for seed in range(6)]
        images, prompt = [film], vlm.prompt(video=film, question="When?")
    else:
        images = [picture(112, 84, 1), picture(84, 112, 2)][: 1 if kind == "tiles" else 2]
        prompt = vlm.prompt(images, "How many?")
    trace = attnlens.replay(vlm, prompt, "Two of them.", visual_map=True)
    path = trace.to_html(tmp_path / "page.html", images=images)
    views = contents_of(path)["runs"][0]["pictures"]
    assert all(one["source"] for one in views)
    weights = trace.data["visual_map"].mean("layer").values
    with opened(browser, path) as page:
        drawn = page.locator("[aria-label=pictures] canvas")
        assert drawn.count() == len(views) == {"video": 3, "tiles": 1, "two images": 2}[kind]
        for place, one in enumerate(views):
            choose(page, **{"from": 1})
            drawn.nth(place).focus()
            page.keyboard.press("Enter")
            settle(page)
            weight = weights[1, one["first"]]
            shown = number(readout(page)["patch"][0])
            assert shown == pytest.approx(weight, abs=contents_of(path)["errors"]["maps"] + 1e-6)
        assert drawn.first.screenshot() != drawn.last.screenshot() or kind == "tiles"


# In a notebook


def test_the_frame_of_a_notebook(browser, runs):  # noqa: F811
    shown = view(runs.trace, expected=runs.expected)
    with tab(browser) as page:
        page.set_content(f"<!DOCTYPE html><body>{shown._repr_html_()}</body>")
        frame = page.frame_locator("iframe")
        frame.locator("#attnlens[data-ready]").wait_for()
        frame.locator(".token").nth(10).click()
        row = frame.locator("tr[data-key=step] td").first
        assert row.inner_text() == "11"
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)  # the address would be noted now
        with page.expect_download() as download:
            frame.locator("button[title^='Save']:text-is('CSV')").click()
        assert b"image: look-back" in download.value.path().read_bytes()


WIDGET = """async ([script, payload]) => {
  const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  const heard = new Map();
  window.told = [];
  window.model = {
    values: { payload, step: 1 },
    get(name) { return this.values[name]; },
    set(name, value) { this.values[name] = value; },
    save_changes() { window.told.push(this.values.step); },
    on(name, then) { heard.set(name, then); },
    off(name) { heard.delete(name); },
    fromPython(step) { this.values.step = step; heard.get("change:step")?.(); },
  };
  const el = document.createElement("div");
  document.body.append(el);
  window.close_widget = module.default.render({ model: window.model, el });
}"""


def test_the_widget_tells_and_follows_the_step(browser, runs):  # noqa: F811
    shown = view(runs.trace)
    with tab(browser) as page:
        page.goto("about:blank")
        page.add_style_tag(content=stylesheet())
        page.evaluate(WIDGET, [script(), json.dumps(shown.contents)])
        page.wait_for_selector("[data-ready]")
        page.locator(ANSWER).focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        assert steps(page) == "10"
        assert page.evaluate("() => [told.at(-1), model.get('step')]") == [10, 10]
        told = page.evaluate("() => told.length")
        page.evaluate("() => model.fromPython(33)")
        assert steps(page) == "33"
        page.evaluate("() => model.fromPython(10)")  # back to what the page has told before
        assert steps(page) == "10"
        page.evaluate("() => model.fromPython(100000)")
        assert steps(page) == "10"
        assert page.evaluate("() => told.length") <= told + 2
        assert page.evaluate("() => location.hash") == ""
        page.evaluate("() => close_widget()")
        page.evaluate("() => model.fromPython(5)")
        assert steps(page) == "10"
