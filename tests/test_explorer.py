"""Pages of the explorer: what they hold, by a decoder of the tests' own, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import xarray as xr
from conftest import picture
from helpers_explorer import large_trace
from helpers_traces import FakeRegion, dataset_of_attention, make_dataset, random_attention
from PIL import Image

import attnlens
from attnlens import measures
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.explorer import Shown, page_contents, page_html, runs_to_show, view
from attnlens.explorer.packing import Packer
from attnlens.explorer.pictures import data_url
from attnlens.measures.definitions import DEFINITIONS
from attnlens.models.images import Tile, open_image
from attnlens.models.videos import Video, open_video
from attnlens.segments import SEGMENTS

ROWS, COLUMNS = 1, 5  # the visual tokens of random_attention


def handmade(seed=0, *, steps=6, insert_at=None, maps=True, images=None, **attrs):
    """A trace of full attention rows, with the maps of all layers and of two heads."""
    attention = random_attention(seed, steps=steps, insert_at=insert_at)
    data = dataset_of_attention(attention, regions=[FakeRegion("back", 1, 4)])
    if maps:
        visual = attention.weights[..., attention.labels == "visual"]
        heads = np.stack([visual[:, 1, 3], visual[:, 0, 2]], 1)
        data["visual_map"] = (("step", "layer", "visual"), visual.mean(2).astype("float32"))
        data["visual_map_by_head"] = (("step", "mapped", "visual"), heads.astype("float32"))
        count = visual.shape[-1]
        data = data.assign_coords(
            mapped_layer=("mapped", [1, 0]),
            mapped_head=("mapped", [3, 2]),
            visual_image=("visual", np.zeros(count, int)),
        )
    data.attrs.update(images=images or [], prompt="<image>Where?", **attrs)
    return attnlens.Trace(data)


def decoded(contents, entry):
    """The values of an array of a page, by the description of its format."""
    raw = zlib.decompress(base64.b64decode(contents["blobs"][entry["blob"]]))
    kind = {"f4": "<f4", "i4": "<i4", "u1": "u1"}[entry["type"]]
    values = np.frombuffer(raw, kind).reshape(entry["shape"]).astype(float)
    if entry["type"] != "u1":
        return values
    scale = decoded(contents, entry["scale"])
    others = [axis for axis in range(values.ndim) if axis not in entry["scale_axes"]]
    found = values * np.expand_dims(scale, others) / entry["levels"]
    found[values == 255] = np.nan
    return found


def payload(text):
    """The contents of a page, as a browser would read them."""
    return json.loads(elements(text)["script", "attnlens-data"])


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found, self.texts, self.open = [], {}, None

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))
        self.open = (tag, dict(attributes).get("id") or dict(attributes).get("type") or "")

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open:
            self.texts[self.open] = self.texts.get(self.open, "") + data


def parsed(text):
    parser = _Elements()
    parser.feed(text)
    parser.close()
    return parser


def elements(text):
    return parsed(text).texts


def close(found, wanted, tolerance):
    wanted = np.asarray(wanted, dtype=float)
    assert found.shape == wanted.shape
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    assert np.abs(np.nan_to_num(found) - np.nan_to_num(wanted)).max(initial=0) <= tolerance


# What a page holds


@pytest.mark.parametrize("insert_at", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_that_of_the_measures(seed, insert_at):
    trace = handmade(seed, insert_at=insert_at)
    contents = page_contents([Shown(trace=trace, expected="6")])
    (run,) = contents["runs"]
    error = contents["errors"]
    assert 0 < error["mass"] < 0.004
    assert 0 < error["maps"] < 0.004
    data = trace.data
    close(decoded(contents, run["keys"]), data["keys"], 0)
    rounding = 1e-6
    close(decoded(contents, run["mass"]), data["mass"], error["mass"] + rounding)
    assert [one["name"] for one in contents["definitions"]] == list(DEFINITIONS)
    assert (run["shares_with_copied"] is None) == (insert_at is None)
    for copied, shares in ((False, run["shares"]), (True, run["shares_with_copied"] or {})):
        wanted = [n for n, one in DEFINITIONS.items() if one.counts_copied or not copied]
        assert list(shares) == (wanted if shares else [])
        for name, found in shares.items():
            definition = DEFINITIONS[name]
            for key, reduction in (("by_layer", "layer"), ("by_head", "none")):
                if key == "by_head" and not definition.per_head:
                    assert found[key] is None
                    continue
                share = measures.visual_share(
                    trace, name, reduction=reduction, include_copied=copied
                )
                share = share.reindex(step=data["step"]).values
                close(decoded(contents, found[key]), share, error["mass"] + rounding)
            exact = measures.visual_share(trace, name, reduction="layer", include_copied=copied)
            exact = exact.reindex(step=data["step"]).values
            np.testing.assert_allclose(decoded(contents, found["by_layer"]), exact, rtol=1e-6)
    split = measures.log_odds(trace)
    mean = {term: split[term].values for term in ("log_odds", "counts", "preference")}
    for term, values in mean.items():
        shape = (data.sizes["step"], data.sizes["layer"], data.sizes["head"])
        values = values if values.ndim == 3 else np.broadcast_to(values[:, None, None], shape)
        np.testing.assert_allclose(decoded(contents, run["split"][term]), values.mean(-1), 1e-5)
    total = sum(decoded(contents, run["split"][term]) for term in ("counts", "preference"))
    np.testing.assert_allclose(total, decoded(contents, run["split"]["log_odds"]), atol=1e-5)


def test_maps_are_the_mean_and_each_layer_and_each_head_of_the_trace():
    trace = handmade(4)
    contents = page_contents([Shown(trace=trace)])
    maps = contents["runs"][0]["maps"]
    layers, heads = trace.data["visual_map"].values, trace.data["visual_map_by_head"].values
    wanted = [("mean", None, None, layers.mean(1))]
    wanted += [("layer", i, None, layers[:, i]) for i in range(3)]
    wanted += [("head", 1, 3, heads[:, 0]), ("head", 0, 2, heads[:, 1])]
    assert maps["visual"] == 5
    for source, (kind, layer, head, values) in zip(maps["sources"], wanted, strict=True):
        assert (source["kind"], source["layer"], source["head"]) == (kind, layer, head)
        close(decoded(contents, source["weights"]), values, contents["errors"]["maps"] + 1e-6)


def test_words_regions_and_events():
    trace = handmade(
        special_token_ids=[102, 105],
        interventions=[{"step": 2, "intervention": "copy", "inserted": 5}],
        model="tiny",
        generation={"max_new_tokens": 6, "eos_token_id": 1},
    )
    (run,) = page_contents([Shown(trace=trace, name="one")])["runs"]
    assert run["predicted"] == trace.tokens
    assert run["query"] == ["\n", *trace.tokens[:-1]]
    assert run["special"] == [2, 5]
    assert run["events"] == [{"step": 2, "name": "copy", "inserted": 5}]
    assert run["regions"] == [{"name": "back", "start": 1, "stop": 4, "closed": True}]
    assert (run["name"], run["model"], run["cut_off"]) == ("one", "tiny", True)
    assert (run["steps"], run["layers"], run["heads"]) == (list(range(6)), [0, 1, 2], 4)


def boxed(answer, **attrs):
    trace = handmade(**attrs)
    tokens = [*trace.tokens[:-1], f"\\boxed{{{answer}}}"]
    return attnlens.Trace(trace.data.assign_coords(predicted_token=("step", np.array(tokens))))


@pytest.mark.parametrize(("expected", "right"), [("6", True), ("6.0", True), ("7", False)])
def test_answers_are_judged_by_the_rule_of_the_package(expected, right):
    (run,) = page_contents([Shown(trace=boxed("6"), expected=expected)])["runs"]
    assert (run["answer"], run["expected"], run["right"]) == ("6", expected, right)
    (run,) = page_contents([Shown(trace=boxed("6"))])["runs"]
    assert run["right"] is None
    assert any("expected=" in one for one in run["lacks"])


def test_a_new_definition_is_shown_and_one_outside_of_fractions_is_exact(monkeypatch):
    def odd(data, visual):
        return np.asarray(data["mass"].sel(segment="visual"), float) * 100 - 20

    new = replace(DEFINITIONS["mass"], name="odd", compute=odd, counts_copied=False)
    monkeypatch.setitem(DEFINITIONS, "odd", new)
    trace = handmade(1)
    contents = page_contents([Shown(trace=trace)])
    assert contents["definitions"][-1]["name"] == "odd"
    found = decoded(contents, contents["runs"][0]["shares"]["odd"]["by_head"])
    np.testing.assert_allclose(found, odd(trace.data, ()), rtol=1e-6)
    assert contents["errors"]["mass"] < 0.004


def test_definitions_that_refuse_a_trace_are_left_out_with_the_reason():
    trace = handmade(1)
    contents = page_contents([Shown(trace=attnlens.Trace(trace.data.drop_vars("visual_nonzero")))])
    names = [one["name"] for one in contents["definitions"]]
    assert "mass" in names
    assert len(names) < len(DEFINITIONS)
    left = next(name for name in DEFINITIONS if name not in names)
    assert any(
        text.startswith(f"{left} has no value here") for text in contents["runs"][0]["lacks"]
    )


def test_a_trace_without_visual_keys_or_steps_is_refused():
    trace = handmade(1, maps=False)
    blind = trace.data.copy(deep=True)
    blind["keys"].loc[{"segment": "visual"}] = 0
    with pytest.raises(InputError, match="no visual keys"):
        page_contents([Shown(trace=attnlens.Trace(blind))])
    with pytest.raises(InputError, match="no steps"):
        page_contents([Shown(trace=attnlens.Trace(trace.data.isel(step=[])))])


def test_what_a_page_lacks_is_said_with_how_to_record_it():
    (run,) = page_contents([Shown(trace=handmade(maps=False))])["runs"]
    assert run["maps"] is None
    lacks = " ".join(run["lacks"])
    for words in ("visual_map=True", "map_heads=", "dependence=", "looking=", "expected="):
        assert words in lacks
    assert run["pictures"] == []
    assert "pictures are not known" in lacks
    (run,) = page_contents([Shown(trace=handmade())])["runs"]
    assert "visual_map=True" not in " ".join(run["lacks"])


# Packing


@pytest.mark.parametrize("levels", [254, 127, 63, 31, 15])
def test_no_value_is_off_by_more_than_the_error_that_is_stated(levels):
    rng = np.random.default_rng(levels)
    values = rng.random((40, 3, 5), dtype=np.float32) ** 6
    values[3, 1] = np.nan
    packer = Packer()
    entry = packer.quantised(values, (0,), levels)
    found = decoded({"blobs": packer.blobs}, entry)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    off = np.nanmax(np.abs(found - values))
    assert packer.error * 0.99 <= off <= packer.error + 1e-6
    assert packer.error < 0.004


def test_what_sums_of_small_values_lose_is_stated_and_said():
    values = np.full((1, 200), 0.001, np.float32)  # all are rounded to 0, and their sum is lost
    values[0, 0] = 0.7
    packer = Packer()
    found = decoded({"blobs": packer.blobs}, packer.quantised(values, (0,)))
    off = np.abs(found.sum(-1) - values.sum(-1)).max()
    assert off > 20 * packer.error
    assert packer.total_error == pytest.approx(off, rel=1e-3)
    trace = handmade()
    heat = np.zeros(trace.data["visual_map"].shape, np.float32)
    heat[..., 0], heat[..., 1:] = 0.7, 0.0013
    for one, said in ((heat, True), (heat * [1, 0, 0, 0, 0], False)):
        data = trace.data.assign(visual_map=(("step", "layer", "visual"), one))
        contents = page_contents(
            [Shown(trace=attnlens.Trace(data.drop_vars("visual_map_by_head")))]
        )
        lacks = contents["runs"][0]["lacks"]
        assert any("sum over an image is off" in text for text in lacks) == said
        assert (contents["errors"]["maps_total"] > 0.004) == said


def test_zeros_and_nothing_can_be_packed():
    packer = Packer()
    for values in (np.zeros((2, 3)), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        close(decoded({"blobs": packer.blobs}, packer.quantised(values, (0,))), values, 0)


# The size of a page


def page_of(trace, largest):
    contents = page_contents([Shown(trace=trace)], largest=largest)
    return contents, page_html(contents)


def test_a_page_that_would_be_too_large_has_coarser_maps_then_the_mean_alone():
    trace = large_trace(steps=60, layers=4, heads=2, rows=12, columns=20, mapped=2)
    contents, text = page_of(trace, 25_000_000)
    sources = contents["runs"][0]["maps"]["sources"]
    assert {one["weights"]["levels"] for one in sources} == {254}
    whole, seen = len(text.encode()), set()
    for part in (0.9, 0.8, 0.7, 0.6, 0.5):
        largest = int(whole * part) + 80_000  # what is kept aside for the script
        contents, text = page_of(trace, largest)
        assert len(text.encode()) <= largest
        assert contents["errors"]["maps"] < 0.004
        run = contents["runs"][0]
        kept = run["maps"]["sources"]
        seen.add((len(kept), kept[0]["weights"]["levels"]))
        assert (len(kept) == 1) == any("left out" in one for one in run["lacks"])
        values = decoded(contents, kept[0]["weights"])
        close(values, trace.data["visual_map"].mean("layer"), contents["errors"]["maps"] + 1e-6)
    assert {count for count, _ in seen} == {1, 7}
    assert any(count == 7 and levels < 254 for count, levels in seen)


def test_a_page_whose_masses_alone_are_too_large_says_so():
    contents, _ = page_of(handmade(), 1000)
    assert any("larger than 1,000 bytes" in one for one in contents["runs"][0]["lacks"])
    contents, _ = page_of(handmade(), 25_000_000)
    assert not any("larger than" in one for one in contents["runs"][0]["lacks"])


@pytest.mark.slow
def test_the_page_of_a_7b_model_is_below_25_megabytes(tmp_path):
    trace = large_trace()
    path = trace.to_html(tmp_path / "run.html")
    assert path.stat().st_size < 25_000_000
    contents = payload(path.read_text(encoding="utf-8"))
    sources = contents["runs"][0]["maps"]["sources"]
    assert len(sources) == 1 + 28 + 16
    assert max(contents["errors"][name] for name in ("mass", "maps")) < 0.004
    wanted = trace.data["visual_map_by_head"][:, 3].values
    close(decoded(contents, sources[32]["weights"]), wanted, contents["errors"]["maps"] + 1e-6)


# The file


def test_the_policy_allows_this_script_and_this_style_and_nothing_else():
    text = page_html(page_contents([Shown(trace=handmade())]))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("base-uri") == "'none'"
    assert rules.pop("form-action") == "'none'"
    assert rules.pop("img-src") == "data: blob:"
    for rule, pattern in (
        ("script-src", r'<script type="module">(.*?)</script>'),
        ("style-src", r"<style>(.*?)</style>"),
    ):
        (content,) = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert rules == {}
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert text.index("Content-Security-Policy") < text.index("<title>")


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "]]>\u2028\u2029\x00\x1b[31m",
    "\u202eevil\u202c",
    '"><style>*{display:none}</style>',
    "</title></noscript></main><h1>",
    "&lt;b&gt; &amp; '\"",
    "\ud800",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_texts_stay_texts(words, tmp_path):
    harmless = page_html(page_contents(runs_to_show(boxed("x"), twins={"y": boxed("x")})))
    trace = boxed(words, model=words, question=words, mode=words)
    texts = [words, *trace.tokens[1:]]
    trace = attnlens.Trace(trace.data.assign_coords(predicted_token=("step", np.array(texts))))
    trace.attrs["interventions"] = [{"step": 1, "intervention": words}]
    path = trace.to_html(tmp_path / "a.html", twins={words: trace}, expected=words)
    text = path.read_text(encoding="utf-8")
    assert parsed(text).found == parsed(harmless).found
    assert "\u2028" not in text
    contents = payload(text)
    own, twin = contents["runs"]
    assert own["predicted"][0] == own["model"] == own["question"] == twin["name"] == words
    assert own["events"][0]["name"] == own["expected"] == words


def test_endless_tokens_are_cut_in_the_middle():
    trace = handmade()
    tokens = ["<" * 100_000, *trace.tokens[1:]]
    trace = attnlens.Trace(
        trace.data.assign_coords(predicted_token=("step", np.array(tokens, dtype=str)))
    )
    (run,) = page_contents([Shown(trace=trace)])["runs"]
    assert len(run["predicted"][0]) == 2000
    assert "\u2026" in run["predicted"][0]


def test_without_javascript_question_and_answer_are_there():
    trace = boxed("6", question="How many <i>apples</i>?")
    text = page_html(page_contents([Shown(trace=trace)]))
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    assert "How many &lt;i&gt;apples&lt;/i&gt;?: 6" in plain


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    trace, path = handmade(), tmp_path / "run.html"
    assert trace.to_html(str(path)) == path
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        trace.to_html(path)
    assert path.read_bytes() == before
    other = boxed("9")
    other.to_html(path, replace=True)
    assert path.read_bytes() != before
    before = path.read_bytes()
    monkeypatch.setattr("attnlens.explorer.page.page_html", lambda _: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        trace.to_html(path, replace=True)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["run.html"]


def test_what_cannot_be_written_or_does_not_fit_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("attnlens.explorer.contents.visual_share", lambda *_, **__: 1 / 0)
    (tmp_path / "file").write_text("")
    (tmp_path / "there.html").write_text("")
    trace = handmade(images=[{"width": 10, "height": 10, "rows": 1, "columns": 5}])
    wrong = xr.Dataset({"predicted_token_id": ("step", [1, 2])}, {"reference": ["removed"]})
    for path, options, words in (
        (tmp_path, {}, "cannot write a file"),
        (tmp_path / "file" / "a.html", {}, "is not a folder"),
        (tmp_path / "there.html", {}, "exists already"),
        (tmp_path / "a.html", {"images": [picture(), picture()]}, "2 images were given"),
        (tmp_path / "a.html", {"images": picture(30, 40)}, "30 x 40 pixels"),
        (tmp_path / "a.html", {"dependence": wrong}, "of another answer"),
        (tmp_path / "a.html", {"dependence": {"copy": wrong}}, "names 'copy'"),
        (tmp_path / "a.html", {"truth": [(99, (0, 0, 1, 1))]}, "(99, "),
        (tmp_path / "a.html", {"truth": [(1, (0, 0, 1))]}, "give pairs of a step"),
        (tmp_path / "a.html", {"truth": [3]}, "give pairs of a step"),
        (tmp_path / "a.html", {"truth": {"parts": []}}, "no truth of tokens"),
        (tmp_path / "a.html", {"looking": looking(layers=2)}, "not of the model"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            trace.to_html(path, **options)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "there.html"]


# What is known besides


def looking(layers=3, heads=4):
    change = np.random.default_rng(0).normal(size=(layers, heads))
    return xr.Dataset(
        {"change": (("layer", "head"), change)}, {"layer": range(layers)}
    ).assign_coords(head=range(heads))


def test_looking_scores_and_dependence():
    trace = handmade()
    scores = looking(4, 5)
    rng = np.random.default_rng(1)
    names = ("kl", "hellinger", "log_ratio")
    dependence = xr.Dataset(
        {name: (("step", "reference"), rng.random((6, 2))) for name in names},
        {
            "reference": ["removed", "blank"],
            "predicted_token_id": ("step", trace.data["predicted_token_id"].values),
        },
    )
    contents = page_contents(runs_to_show(trace, dependence=dependence, looking=scores))
    (run,) = contents["runs"]
    close(decoded(contents, run["looking"]["values"]), -scores["change"][:3, :4], 1e-6)
    assert run["dependence"]["references"] == ["removed", "blank"]
    for name in names:
        found = decoded(contents, run["dependence"][name])
        close(found, dependence[name].values.T, 1e-6)
    assert not any("dependence" in one or "looking" in one for one in run["lacks"])


def test_twins_stand_beside_the_trace_and_dependence_is_by_name():
    trace, twin = handmade(1), handmade(2, insert_at=3)
    dependence = xr.Dataset(
        {n: (("reference", "step"), np.ones((1, 6))) for n in ("kl", "hellinger", "log_ratio")},
        {
            "reference": ["removed"],
            "predicted_token_id": ("step", twin.data["predicted_token_id"].values),
        },
    )
    runs = runs_to_show(trace, twins={"copy": twin}, dependence={"copy": dependence})
    contents = page_contents(runs)
    own, other = contents["runs"]
    assert (own["name"], other["name"]) == ("untouched", "copy")
    close(decoded(contents, other["mass"]), twin.data["mass"], contents["errors"]["mass"] + 1e-6)
    assert own["dependence"] is None
    assert other["dependence"] is not None
    assert (own["shares_with_copied"], other["shares_with_copied"] is None) == (None, False)


IMAGE = {"path": "a.png", "sha256": "1", "width": 50, "height": 10, "rows": 1, "columns": 5}


def test_twins_of_another_prompt_are_refused():
    trace = handmade(images=[IMAGE])
    for words, attrs in (
        ("another model", {"config_hash": "1" * 16}),
        ("another prompt", {"prompt": "other"}),
        ("another question", {"question": "other"}),
        ("another image", {"images": [{**IMAGE, "sha256": "2"}]}),
    ):
        twin = handmade(2, images=[IMAGE])
        twin.attrs.update(attrs)
        with pytest.raises(InputError, match=f"'copy' has {words}"):
            runs_to_show(trace, twins={"copy": twin})
    with pytest.raises(InputError, match="named 'untouched'"):
        runs_to_show(trace, twins={"untouched": handmade(2, images=[IMAGE])})
    few = attnlens.Trace(handmade(images=[IMAGE]).data.isel(layer=[0]))
    with pytest.raises(InputError, match="other layers"):
        runs_to_show(trace, twins={"copy": few})
    moved = handmade(2, images=[{**IMAGE, "path": "/elsewhere/a.png"}])
    assert len(runs_to_show(trace, twins={"copy": moved})) == 2


def test_truth_holds_for_a_twin_up_to_where_it_writes_something_else():
    trace, twin = handmade(images=[IMAGE]), handmade(2, images=[IMAGE])
    tokens = [*twin.tokens[:2], "other", *twin.tokens[3:]]
    twin = attnlens.Trace(twin.data.assign_coords(predicted_token=("step", np.array(tokens))))
    pairs = [(1, (10, 0, 20, 5)), (3, (0, 0, 50, 10))]
    named = [{"text": text, "box": None} for text in trace.tokens]
    named[1]["box"], named[3]["box"] = pairs[0][1], pairs[1][1]
    for truth in (pairs, {"tokens": named}):
        own, other = page_contents(runs_to_show(trace, twins={"copy": twin}, truth=truth))["runs"]
        first = {"step": 1, "picture": 0, "box": [0.2, 0, 0.4, 0.5], "label": ""}
        assert own["truth"] == [first, {**first, "step": 3, "box": [0, 0, 1, 1]}]
        assert other["truth"] == [first]
    assert any("first 2 only" in one for one in other["lacks"])
    assert not any(" only, since" in one for one in own["lacks"])


# Pictures


def opened(url):
    head, _, body = url.partition(",")
    return head, Image.open(BytesIO(base64.b64decode(body)))


def record_of(path, *tiles):
    return open_image(path)[1].in_tiles(tiles or [Tile(1, 5)]).as_dict()


def test_the_picture_of_the_file_that_was_recorded_with_the_place_of_each_token(tmp_path):
    image = picture(140, 56)
    image.save(tmp_path / "a.png")
    trace = handmade(images=[record_of(tmp_path / "a.png")])
    contents = page_contents([Shown(trace=trace)])
    (shown,) = contents["runs"][0]["pictures"]
    head, found = opened(shown["source"])
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(found), np.asarray(image))
    assert [shown[k] for k in ("width", "height", "first", "count", "rows", "columns")] == [
        *(140, 56),
        *(0, 5, 1, 5),
    ]
    wanted = [[i / 5, 0, (i + 1) / 5, 1] for i in range(5)]
    close(decoded(contents, shown["boxes"]), wanted, 1e-6)


def test_pictures_that_are_gone_or_changed_leave_their_place(tmp_path):
    path = tmp_path / "a.png"
    picture(140, 56).save(path)
    trace = handmade(images=[record_of(path)])
    picture(140, 56, seed=1).save(path)
    for words in ("changed since", "is not there"):
        (run,) = page_contents([Shown(trace=trace)])["runs"]
        (shown,) = run["pictures"]
        assert shown["source"] is None
        assert shown["count"] == 5
        (told,) = [one for one in run["lacks"] if words in one]
        assert "give images=" in told
        path.unlink(missing_ok=True)
    given = picture(140, 56, seed=2)
    for images in (given, [given]):
        (run,) = page_contents(runs_to_show(trace, images=images))["runs"]
        assert np.array_equal(
            np.asarray(opened(run["pictures"][0]["source"])[1]), np.asarray(given)
        )


def test_several_pictures_have_their_own_tokens_with_and_without_a_map(tmp_path):
    records = []
    for number, tile in enumerate((Tile(1, 2), Tile(1, 3))):
        picture(56, 28, seed=number).save(tmp_path / f"{number}.png")
        records.append(record_of(tmp_path / f"{number}.png", tile))
    trace = handmade(images=records)
    data = trace.data.assign_coords(visual_image=("visual", [0, 0, 1, 1, 1]))
    without = data.drop_vars(["visual_map", "visual_map_by_head", "visual_image"])
    for one in (data, without):
        (run,) = page_contents([Shown(trace=attnlens.Trace(one))])["runs"]
        places = [(p["item"], p["first"], p["count"], p["label"]) for p in run["pictures"]]
        assert places == [(0, 0, 2, "image 0"), (1, 2, 3, "image 1")]


def test_a_picture_in_tiles_has_boxes_and_no_grid(tmp_path):
    picture(100, 100).save(tmp_path / "a.png")
    tiles = (
        Tile(1, 1, (0, 0, 1, 0.5), newlines=True),
        Tile(1, 2, (0, 0.5, 1, 1)),
        Tile(1, 1, None),
    )
    trace = handmade(images=[record_of(tmp_path / "a.png", *tiles)])
    contents = page_contents([Shown(trace=trace)])
    (shown,) = contents["runs"][0]["pictures"]
    assert (shown["rows"], shown["columns"], shown["count"]) == (0, 0, 5)
    nothing = [np.nan] * 4
    wanted = [[0, 0, 1, 0.5], nothing, [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1], nothing]
    close(decoded(contents, shown["boxes"]), wanted, 1e-6)


def test_a_video_has_a_picture_for_each_moment(tmp_path):
    frames = [picture(28, 28, seed=i) for i in range(4)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    _, info = open_video(Video(tmp_path, fps=2))
    info = replace(info, frames=replace(info.frames, length=2))
    moments = (len(info.frames.indices) + 1) // 2
    counts = [2, 3] if moments == 2 else [5]
    record = info.in_tiles([Tile(1, count) for count in counts]).as_dict()
    record.setdefault("tiles", [{"rows": 1, "columns": 5}])
    record = json.loads(json.dumps(record))
    trace = handmade(images=[record])
    (run,) = page_contents([Shown(trace=trace)])["runs"]
    assert [p["count"] for p in run["pictures"]] == counts
    assert len({p["label"] for p in run["pictures"]}) == moments
    for place, shown in enumerate(run["pictures"]):
        wanted = frames[info.frames.indices[2 * place]]
        assert np.array_equal(np.asarray(opened(shown["source"])[1]), np.asarray(wanted))
    shutil.rmtree(tmp_path)
    (run,) = page_contents([Shown(trace=trace)])["runs"]
    assert [p["source"] for p in run["pictures"]] == [None] * moments
    assert any("give images=" in one for one in run["lacks"])


def test_a_trace_that_does_not_know_its_grid_has_no_picture(tmp_path):
    picture(140, 56).save(tmp_path / "a.png")
    for record in (
        {**record_of(tmp_path / "a.png"), "rows": 0, "columns": 0},
        record_of(tmp_path / "a.png", Tile(2, 5)),
    ):
        (run,) = page_contents([Shown(trace=handmade(images=[record]))])["runs"]
        assert run["pictures"] == []
        assert any("is not known" in one and "image 0" in one for one in run["lacks"])


def test_pictures_are_made_small_and_tell_nothing_of_the_camera(tmp_path):
    large = picture(1500, 700)
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    large.save(tmp_path / "a.jpg", exif=exif, comment=b"SECRET", icc_profile=b"SECRET")
    assert (tmp_path / "a.jpg").read_bytes().count(b"SECRET") == 3
    head, found = opened(data_url(Image.open(tmp_path / "a.jpg")))
    assert head == "data:image/jpeg;base64"
    assert max(found.size) == 1024
    assert found.size[0] / found.size[1] == pytest.approx(1500 / 700, rel=0.01)
    for one in (Image.open(tmp_path / "a.jpg"), Image.open(tmp_path / "a.jpg").resize((30, 30))):
        one.info = {"exif": exif.tobytes(), "comment": b"SECRET", "icc_profile": b"SECRET"}
        assert b"SECRET" not in base64.b64decode(data_url(one).partition(",")[2])


# In a notebook


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(monkeypatch):
    shown = view(handmade(), expected="6")
    frame = shown._repr_html_()
    found = parsed(frame).found
    assert [tag for tag, _ in found] == ["iframe"]
    (page,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(page) == page_html(shown.contents)
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert shown._repr_mimebundle_()["text/html"] == frame
    with pytest.raises(ImportError):
        _ = shown.step
    assert "iframe" not in handmade()._repr_html_()
    trace = large_trace(steps=30, layers=4, heads=2, rows=12, columns=20, mapped=2)
    assert len(view(trace, largest=200_000)._repr_html_()) < len(view(trace)._repr_html_())


def test_the_widget_has_the_page_and_the_step_at_the_cursor():
    pytest.importorskip("anywidget")
    shown = view(handmade())
    assert json.loads(shown.widget.payload) == shown.contents
    assert shown.step == 0
    shown.widget.step = 3
    assert shown.step == 3
    assert shown.widget is shown.widget


# The command line and many runs


@pytest.fixture
def runs(tmp_path):
    """Three runs, one of which cannot be read."""
    folder = tmp_path / "runs"
    for number, answer in enumerate(("6", "5")):
        picture(140, 56, seed=number).save(tmp_path / f"{number}.png")
        one = boxed(answer, images=[record_of(tmp_path / f"{number}.png")])
        one.save(folder / f"{number}" / "back_trace.zarr")
        summary = (
            {"mode": "back", "expected": "6"} if not number else {"mode": "cot", "expected": "5"}
        )
        (folder / f"{number}" / "summary.json").write_text(json.dumps(summary))
    shutil.copytree(folder / "0", folder / "bad")
    (folder / "bad" / "back_trace.zarr" / "attnlens.json").write_text("{")
    return folder


def rows_of(folder):
    return payload((folder / "index.html").read_text(encoding="utf-8"))["rows"]


def test_a_folder_of_runs_becomes_a_list_and_a_broken_run_is_named(runs, capsys):
    assert main(["explore", str(runs)]) == 1
    said = capsys.readouterr()
    assert "left out bad/back_trace" in said.err
    assert said.err.count("\n") == 2
    out = runs.with_name("runs_explorer")
    assert "2 pages, written to" in said.out
    one, two = rows_of(out)
    assert (one["answer"], one["expected"], one["right"]) == ("6", "6", True)
    assert (two["answer"], two["expected"], two["right"]) == ("5", None, None)  # of another mode
    for row in (one, two):
        page = payload((out / row["href"]).read_text(encoding="utf-8"))
        assert page["runs"][0]["answer"] == row["answer"]
        trace = attnlens.Trace.load(runs / f"{row['name']}.zarr")
        share = measures.visual_share(trace, "look-back").values
        np.testing.assert_allclose(row["curve"], share)
        assert row["start"] == pytest.approx(share[:1].mean())
        assert row["end"] == pytest.approx(share[-1:].mean())
        assert row["steps"] == 6
    assert main(["explore", str(runs), "--expected", "7", "--definition", "mass"]) == 1  # again
    one, two = rows_of(out)
    assert (one["expected"], two["expected"], two["right"]) == ("6", "7", False)
    assert (one["definition"], len(one["curve"])) == ("mass", 6)


def test_curves_of_long_runs_are_means_of_equal_parts(tmp_path):
    trace = handmade(steps=200, maps=False)
    trace.save(tmp_path / "runs" / "a.zarr")
    assert main(["explore", str(tmp_path / "runs"), "--definition", "mass"]) == 0
    (row,) = rows_of(tmp_path / "runs_explorer")
    share = measures.visual_share(trace, "mass").values
    assert len(row["curve"]) == 64
    np.testing.assert_allclose(row["curve"], [part.mean() for part in np.array_split(share, 64)])
    assert row["start"] == pytest.approx(share[:50].mean())


def test_forced_twins_of_replay_stand_beside_their_run(tmp_path, capsys):
    runs = tmp_path / "replay_runs"
    trace, twin, plain = handmade(1), handmade(2, insert_at=3), handmade(3)
    trace.save(runs / "back" / "00001_a" / "trace.zarr")
    twin.save(runs / "back_interventions" / "route=50" / "00001_a" / "trace.zarr")
    foreign = handmade(4)
    foreign.attrs["prompt"] = "another"
    foreign.save(runs / "back_interventions" / "boost" / "00001_a" / "trace.zarr")
    answer = tmp_path / "replay" / "back" / "00001_a"
    answer.mkdir(parents=True)
    (answer / "summary.json").write_text('{"mode": "back", "expected": "6"}')
    out = tmp_path / "pages"

    def shown():
        assert main(["explore", str(tmp_path), "--out", str(out)]) == 0
        (row,) = rows_of(out)
        assert row["expected"] == "6"
        return payload((out / row["href"]).read_text(encoding="utf-8"))

    contents = shown()
    assert "'boost' has another prompt" in capsys.readouterr().err
    assert [one["name"] for one in contents["runs"]] == ["untouched", "route:50"]
    close(decoded(contents, contents["runs"][0]["mass"]), trace.data["mass"], 0.004)
    # of half precision: twins compare with the same answer, fed token by token
    plain.save(runs / "back_interventions" / "nothing" / "00001_a" / "trace.zarr")
    contents = shown()
    assert [one["name"] for one in contents["runs"]] == ["untouched", "route:50"]
    close(decoded(contents, contents["runs"][0]["mass"]), plain.data["mass"], 0.004)


def test_a_page_of_one_trace(runs, tmp_path, capsys):
    trace = runs / "0" / "back_trace.zarr"
    assert main(["explore", str(trace)]) == 0
    page = payload(trace.with_suffix(".html").read_text(encoding="utf-8"))
    assert (page["runs"][0]["expected"], page["runs"][0]["right"]) == ("6", True)
    assert str(trace.with_suffix(".html")) in capsys.readouterr().out
    assert main(["explore", str(trace)]) == 2
    assert "--replace" in capsys.readouterr().err
    (tmp_path / "0.png").rename(tmp_path / "moved.png")
    options = ["--image-path", str(tmp_path / "moved.png"), "--expected", "9", "--replace"]
    assert main(["explore", str(trace), "--twin", f"same={trace}", *options]) == 0
    own, twin = payload(trace.with_suffix(".html").read_text(encoding="utf-8"))["runs"]
    assert (own["name"], twin["name"]) == ("untouched", "same")
    assert own["right"] is False
    assert own["pictures"][0]["source"]


def test_bad_input_is_one_line_and_writes_nothing(runs, tmp_path, capsys):
    trace = str(runs / "0" / "back_trace.zarr")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    before = sorted(map(str, tmp_path.rglob("*")))
    for arguments, words in (
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path / "empty")], "holds no traces"),
        ([str(runs), "--out", str(tmp_path / "full")], "holds something other than pages"),
        ([str(runs), "--definition", "gaze"], "'gaze'"),
        ([str(runs), "--twin", f"a={trace}"], "--twin"),
        ([str(runs), "--image_path", "a.png"], "--image_path"),
        ([str(runs / "bad" / "back_trace.zarr")], "bad"),
        ([str(runs / "bad")], "no run of"),
        ([trace, "--twin", "copy"], "--twin copy"),
        ([trace, "--twin", f"untouched={trace}"], "named 'untouched'"),
        ([trace, "--twin", "copy=none.zarr"], "none.zarr"),
        ([trace, "--image_path", "none.png"], "none.png"),
        ([trace, "--out", str(tmp_path)], "cannot write a file"),
    ):
        assert main(["explore", *arguments]) == 2, arguments
        err = capsys.readouterr().err
        assert words in err
        assert len([line for line in err.splitlines() if "left out" not in line]) == 1
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_help_of_explore_is_light():
    code = (
        "import sys; from attnlens.cli.main import main\n"
        "try:\n    main(['explore', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'pandas', 'scipy', 'xarray', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--twin" in done.stdout
    assert "HEAVY []" in done.stdout


def test_a_generation_of_the_testbed(testbed, tmp_path):
    """All in one: a picture, a map, a twin and a dependence, as they are recorded."""
    sample = attnlens.testbed.held_out_sample(0, 0, "back")
    sample.scene.draw().save(tmp_path / "a.png")
    prompt = testbed.prompt(tmp_path / "a.png", sample.question.text, mode="back")
    trace = attnlens.run(testbed, prompt, 12, visual_map=True)
    twin = attnlens.run(
        testbed,
        prompt,
        12,
        visual_map=True,
        intervention=attnlens.interventions.Copy(when=attnlens.interventions.AtStep(4)),
    )
    found = attnlens.dependence(testbed, trace, references=["blank"])
    path = trace.to_html(tmp_path / "a.html", twins={"copy": twin}, dependence=found)
    assert path.stat().st_size < 1_000_000
    contents = payload(path.read_text(encoding="utf-8"))
    own, other = contents["runs"]
    rows, columns = own["pictures"][0]["rows"], own["pictures"][0]["columns"]
    assert rows * columns == own["maps"]["visual"] == own["pictures"][0]["count"]
    (event,) = other["events"]
    assert (event["step"], event["name"]) == (4, "copy")
    assert event["inserted"] >= rows * columns
    visual = decoded(contents, own["mass"])[..., SEGMENTS.index("visual")].mean((1, 2))
    mean = decoded(contents, own["maps"]["sources"][0]["weights"]).sum(-1)
    error = contents["errors"]
    np.testing.assert_allclose(mean, visual, atol=error["maps_total"] + error["mass"])
    close(decoded(contents, own["dependence"]["kl"]), found["kl"].values, 1e-5)


def test_a_trace_that_knows_nothing_of_where_it_comes_from():
    """A trace of another tool, without maps, images or a mode."""
    mass = np.full((3, 1, 2, len(SEGMENTS)), 1 / len(SEGMENTS))
    data = make_dataset(mass)
    data.attrs.clear()
    (run,) = page_contents([Shown(trace=attnlens.Trace(data))])["runs"]
    assert (run["model"], run["question"], run["answer"]) == ("", "", "t0 t1 t2")
