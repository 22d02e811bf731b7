"""Pages of the explorer in a real browser: what they show, what they answer to, and what is safe."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers_browser import (
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
from attnlens.explorer import Shown, page_contents, page_html, view
from attnlens.explorer.index import index_contents, write_index
from attnlens.interventions import At, Copy
from attnlens.measures.definitions import DEFINITIONS
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
    share = measures.visual_share(
        trace,
        at.definition,
        reduction="none" if by_head else "layer",
        include_copied=at.copied and one.counts_copied,
    ).reindex(step=data["step"])
    shown = share.isel(step=steps, layer=layers, **({"head": at.head} if by_head else {}))
    found["share"] = mean(shown.values), errors["mass"] if by_head else 0.0
    if at.layers is None:  # the definition's own mean
        whole = measures.visual_share(
            trace, at.definition, include_copied=at.copied and one.counts_copied
        ).reindex(step=data["step"])
        assert found["share"][0] == pytest.approx(mean(whole.values[steps]), nan_ok=True, rel=1e-4)

    mass = data["mass"].isel(step=steps, layer=layers, head=heads).values.astype(float)
    error = errors["mass"]
    if not at.sink:
        mass = mass / (1 - mass[..., SEGMENTS.index("sink")])[..., None]
        error = errors["without_sink"]
    for place, name in enumerate(SEGMENTS):
        left_out = name == "sink" and not at.sink
        found[f"mass-{name}"] = (math.nan if left_out else mean(mass[..., place])), error
        found[f"keys-{name}"] = float(data["keys"].values[steps, place].mean()), 0.0

    split = measures.log_odds(trace)
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
        for number_of in range(20):
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
