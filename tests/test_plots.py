"""Figures carry exactly what was measured, and hostile token text does no harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import seaborn
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import attnlens
from attnlens import plots
from attnlens.errors import InputError
from attnlens.measures import shares, visual_share
from attnlens.models.images import open_image
from attnlens.plots.labels import readable
from attnlens.plots.style import WIDTHS, style
from attnlens.segments import SEGMENTS

HOSTILE = [
    *["$x_1$ $\\frac{", "\\$", "\n", "\r\n\n", "\t", "\x00\x1b[31m", "", " ", "猫\U0001f600"],
    *["\ufffd", "\u202e\u200bover", "\ud800", "<&\"'>", "\ufffe", "i" * 500, "é", "%s{0}", "^_{"],
]
ROWS, COLUMNS = 3, 4


def pieces(count: int) -> list[str]:
    """Cut a response into tokens like those of byte-level BPE; <back> takes a quarter."""
    words = [" the", " red", "\n", "$x_1$", " internationalization", "猫", " col", "2", ","]
    back = count // 2
    body = [words[i % len(words)] for i in range(count)]
    body[:3] = ["<", "think", ">"]
    body[back - 3 : back + 3] = ["</", "think", ">", "<", "back", ">"]
    body[back + count // 4 - 3 : back + count // 4] = ["</", "back", ">"]
    return body


def build(
    tokens: list[str], *, layers: tuple[int, ...] = (0, 2, 5), heads: int = 4, images: int = 1
) -> attnlens.Trace:
    """Make a trace of random mass with a visual map of ROWS x COLUMNS tokens for each image."""
    rng = np.random.default_rng(7)
    count, visual = len(tokens), ROWS * COLUMNS * images
    mass = rng.gamma(0.5, size=(count, len(layers), heads, len(SEGMENTS)))
    mass[..., SEGMENTS.index("copied")] = 0
    mass /= mass.sum(-1, keepdims=True)
    keys = np.tile([1, 5, visual, 1, 9, 0, 0], (count, 1))
    keys[:, SEGMENTS.index("response")] = np.arange(count)
    place = np.tile(np.arange(ROWS * COLUMNS), images)
    data = xr.Dataset(
        {
            "mass": (("step", "layer", "head", "segment"), mass.astype("float32")),
            "keys": (("step", "segment"), keys.astype("int32")),
            "visual_nonzero": (("step", "layer"), np.full((count, len(layers)), visual)),
            "visual_map": (("step", "layer", "visual"), rng.random((count, len(layers), visual))),
        },
        coords={
            "step": np.arange(count),
            "layer": list(layers),
            "head": np.arange(heads),
            "segment": list(SEGMENTS),
            "query_token": ("step", np.array(["assistant\n", *tokens[:-1]], dtype=str)),
            "predicted_token": ("step", np.array(tokens, dtype=str)),
            "query_token_id": ("step", np.arange(count)),
            "predicted_token_id": ("step", np.arange(count)),
            "visual_image": ("visual", np.repeat(np.arange(images), ROWS * COLUMNS)),
            "visual_row": ("visual", place // COLUMNS),
            "visual_column": ("visual", place % COLUMNS),
        },
    )
    return attnlens.Trace(data)


@pytest.fixture(scope="module")
def trace() -> attnlens.Trace:
    return build(pieces(120))


@pytest.fixture
def pictured(tmp_path) -> attnlens.Trace:
    """Make a trace of two images, the second of 56 x 30 pixels at ``tmp_path/second.png``."""
    trace = build(pieces(40), images=2)
    records = []
    for name, size in (("first.png", (40, 40)), ("second.png", (56, 30))):
        pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        record = open_image(tmp_path / name)[1].as_dict()
        records.append({**record, "rows": ROWS, "columns": COLUMNS})
    trace.data.attrs["images"] = records
    return trace


def curves_of(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return x and y of the curves by name; tag lines have no such name."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def spans_of(axes) -> set[tuple[float, float]]:
    return {(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if p.get_gid() == "region"}


def upright_labels(axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def texts_of(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def assert_nothing_touches(boxes) -> None:
    for i, box in enumerate(boxes):
        for other in boxes[i + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            along = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 0 or along <= 0, (box, other)


def drawn_boxes(figure) -> list:
    """Draw the figure as it will be saved and return the boxes of all its visible text."""
    with style():
        figure.draw_without_rendering()
    found = [t for t in figure.findobj(mpl.text.Text) if t.get_visible() and t.get_text()]
    # ticks outside the limits or of hidden axes are kept by Matplotlib but not drawn
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [text.get_window_extent() for text in found if text not in hidden]


@pytest.mark.parametrize("definition", ["look-back", "mass", "no-sink", "mean-weight"])
def test_trend_draws_the_measure(trace, definition):
    share = shares(trace, definition)
    (axes,) = plots.trend(trace, definition).axes
    curves = curves_of(axes)
    named = {"image": "image", "query": "query text", "generated": "generated text"}
    assert set(curves) == set(named.values())
    for curve, name in named.items():
        np.testing.assert_array_equal(curves[name][0], share["step"].values)
        np.testing.assert_array_equal(curves[name][1], share.sel(curve=curve).values)
    assert share.attrs["units"] in axes.get_ylabel().replace("\n", " ")


@pytest.mark.parametrize("definition", ["lookback-ratio", "reflection-v"])
def test_a_definition_without_text_curves_gives_one_curve(trace, definition):
    share = visual_share(trace, definition)
    (axes,) = plots.trend(trace, definition).axes
    ((name, (_, values)),) = curves_of(axes).items()
    np.testing.assert_array_equal(values, share.values)
    assert name == share.attrs["long_name"]


def test_colours_and_line_styles_differ(trace):
    (axes,) = plots.trend(trace).axes
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_color() for line in lines] == seaborn.color_palette("colorblind").as_hex()[:3]
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 3


def test_caption_states_formula_and_source(trace):
    attrs = shares(trace, "look-back").attrs
    for figure in (plots.trend(trace, width="one-column"), plots.tokens(trace)):
        words = " ".join(texts_of(figure).split())
        assert attrs["formula"] in words
        assert attrs["source"] in words


@pytest.mark.parametrize("definition", ["look-back", "mass", "no-sink", "mean-weight"])
def test_caption_states_the_formula_of_each_curve(trace, definition):
    """The words of the caption, read as arithmetic on the trace, give the curves."""
    caption = " ".join(texts_of(plots.trend(trace, definition)).split())
    stated = {
        name: re.search(rf"{name}: ([^,;]+)", caption)[1].replace("on ", "").removesuffix(" keys")
        for name in ("image", "query text", "generated text")
    }
    masses = trace.data["mass"].astype("float64")
    masses = masses.mean("head") if "heads averaged first" in caption else masses
    values = {name: masses.sel(segment=name) for name in SEGMENTS}
    if common := re.search(r"with D = ([^,]+)", caption):
        values["D"] = eval(common[1], {}, values)
    keys = trace.data["keys"].astype("float64")
    keys = {f"number_of_{name}": keys.sel(segment=name).where(lambda k: k > 0) for name in SEGMENTS}
    (axes,) = plots.trend(trace, definition).axes
    for name, (steps, drawn) in curves_of(axes).items():
        formula = stated[name].replace("number of ", "number_of_")
        found = eval(formula, {}, {**values, **keys})
        found = found.mean([dim for dim in ("layer", "head") if dim in found.dims])
        np.testing.assert_allclose(found.sel(step=steps).values, drawn, rtol=1e-6)


@pytest.mark.parametrize(
    ("definition", "reduction"),
    [
        ("mass", "keys, per layer and head; then mean over heads and layers."),
        ("look-back", "heads averaged first; then mean over layers."),
        ("reflection-v", "keys with weight; then mean over layers."),
    ],
)
def test_caption_states_the_reduction(trace, definition, reduction):
    assert reduction in " ".join(texts_of(plots.trend(trace, definition)).split())
    # the panels of heat maps name what each of them shows
    assert "then mean" not in " ".join(texts_of(plots.layers(trace, definition)).split())


def test_the_axis_of_mean_weight_is_a_weight_per_token(trace):
    (axes,) = plots.trend(trace, "mean-weight").axes
    label = axes.get_ylabel().replace("\n", " ")
    assert label == "mean attention weight per visual, query or generated token"
    bars = [axes for axes in plots.layers(trace, "mean-weight").axes if axes.get_label()]
    assert len(bars) == 2
    for bar in bars:
        label = bar.get_ylabel().replace("\n", " ")
        assert label == "mean attention weight per visual token"


@pytest.mark.parametrize(("definition", "shift"), [("look-back", 1), ("mass", 0)])
def test_shading_spans_the_regions(trace, definition, shift):
    # Token t is predicted at step t and fed in at step t + 1.
    regions = trace.regions
    assert [region.name for region in regions] == ["think", "back"]
    expected = {(r.start + shift - 0.5, r.stop + shift - 0.5) for r in regions}
    (axes,) = plots.trend(trace, definition).axes
    assert spans_of(axes) == expected
    back = regions[1]
    tags = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    assert [line.get_xdata()[0] for line in tags] == [
        back.start + shift - 0.5,
        back.stop + shift - 0.5,
    ]
    yellow = [p for p in axes.patches if p.get_facecolor()[2] < p.get_facecolor()[0]]
    assert [p.get_x() for p in yellow] == [back.start + shift - 0.5]
    heat = plots.layers(trace, definition).axes[0]
    first, last = heat.get_xlim()
    assert spans_of(heat) == {(max(a, first), min(b, last)) for a, b in expected}


def test_an_open_region_has_no_closing_line():
    trace = build(["<", "back", ">", " no", " end"])
    figure = plots.trend(trace, "mass")
    (axes,) = figure.axes
    assert len([line for line in axes.get_lines() if line.get_label().startswith("_")]) == 1
    assert "</back>" not in texts_of(figure)


def test_nested_and_crowded_regions_have_names_apart():
    tokens = ["<think>", *[" a"] * 30, "<back>", *[" b"] * 8, "</back>", *[" c"] * 5, "</think>"]
    for tag in ("summary", "caption", "reasoning", "reflection", "conclusion"):
        tokens += [f"<{tag}>", f"</{tag}>"]
    figure = plots.trend(build(tokens), width="one-column")
    names = [t for t in figure.findobj(mpl.text.Text) if t.get_gid() == "region name"]
    assert {"think", "back", "summary"} <= {t.get_text() for t in names}
    think = next(t for t in names if t.get_text() == "think")
    assert think.xy[0] == pytest.approx(16)  # over steps 1 to 31, before <back> begins
    assert_nothing_touches(drawn_boxes(figure))


@pytest.mark.parametrize(("definition", "owner"), [("look-back", "query"), ("mass", "predicted")])
def test_labels_are_the_tokens_that_own_the_steps(trace, definition, owner):
    share = shares(trace, definition)
    tokens = trace.data[f"{owner}_token"].sel(step=share["step"]).values
    expected = [readable(token) for token in tokens]
    for figure in (plots.trend(trace, definition, tokens=True), plots.tokens(trace, definition)):
        assert [label for row in figure.axes for label in upright_labels(row)] == expected
        ticks = np.concatenate([row.get_xticks() for row in figure.axes])
        np.testing.assert_array_equal(ticks, share["step"].values)


def test_all_tokens_rows_hold_every_step_once(trace):
    share = shares(trace, "look-back")
    rows = plots.tokens(trace, per_row=50).axes
    assert [len(row.get_xticks()) for row in rows] == [50, 50, 19]
    for curve, name in (("image", "image"), ("generated", "generated text")):
        drawn = np.concatenate([curves_of(row)[name][1] for row in rows])
        np.testing.assert_array_equal(drawn, share.sel(curve=curve).values)
    assert len({row.get_ylim() for row in rows}) == 1
    assert len({round(row.get_position().width / np.ptp(row.get_xlim()), 9) for row in rows}) == 1


@pytest.mark.parametrize("width", ["one-column", "two-column"])
def test_no_text_touches_other_text(trace, pictured, width):
    figures = [
        plots.trend(trace, width=width),
        plots.trend(trace, tokens=True, width=width),
        plots.trend(trace, "mean-weight", steps=(40, 100), width=width, tokens=True),
        plots.tokens(trace),
        plots.layers(trace, width=width),
        plots.layers(trace, "look-back", width=width),
        plots.overlay(pictured, 3, image_index=1, width=width),
    ]
    for figure in figures:
        boxes = drawn_boxes(figure)
        assert_nothing_touches(boxes)
        for box in boxes:  # and none is cut off
            assert box.x0 > -1
            assert box.y0 > -1
            assert box.x1 < figure.bbox.x1 + 1
            assert box.y1 < figure.bbox.y1 + 1


@pytest.mark.parametrize(
    ("count", "width", "rows", "stride"),
    [
        (40, "two-column", 1, 1),
        (55, "two-column", 1, 1),
        (56, "two-column", 2, 1),
        (154, "two-column", 3, 1),
        (217, "two-column", 4, 1),
        (218, "two-column", 3, 2),
        (2048, "two-column", 4, 10),
        (154, "one-column", 4, 2),
        (154, 1.5, 4, 2),
        (154, 13.8, 2, 1),
    ],
)
def test_a_trend_with_tokens_fits_a_page(count, width, rows, stride):
    """Rows as even as can be, of no more labels than fit; every n-th token of a long answer."""
    trace = build(pieces(count), layers=(0,), heads=1)
    share = shares(trace, "look-back")
    figure = plots.trend(trace, tokens=True, width=width)
    assert len(figure.axes) == rows
    assert figure.get_figwidth() == pytest.approx(WIDTHS.get(width) or max(width, 3.35))
    assert figure.get_figheight() < 9.5
    ticks = [row.get_xticks() for row in figure.axes]
    steps = np.concatenate(ticks)
    np.testing.assert_array_equal(steps, share["step"].values[::stride])
    lengths = {len(row) for row in ticks[:-1]}
    assert len(lengths) <= 1
    assert all(len(ticks[-1]) <= length for length in lengths)
    tokens = trace.data["query_token"].sel(step=steps).values
    assert [label for row in figure.axes for label in upright_labels(row)] == [
        readable(token) for token in tokens
    ]
    assert (f"one label in {stride} steps" in " ".join(texts_of(figure).split())) == (stride > 1)
    drawn = np.concatenate([curves_of(row)["image"][1] for row in figure.axes])
    np.testing.assert_array_equal(drawn, share.sel(curve="image").values)
    assert_nothing_touches(drawn_boxes(figure))


@pytest.mark.filterwarnings("ignore:Glyph")  # no font here has them
def test_wide_characters_keep_to_their_rows(monkeypatch):
    """Labels of the widest characters are cut before they reach the row below."""
    monkeypatch.setattr(sys.modules["attnlens.plots.labels"], "_drawable", lambda _: True)
    readable.cache_clear()
    try:
        figure = plots.trend(build(["猫" * 30, "犬" * 30] * 60), tokens=True)
    finally:
        readable.cache_clear()
    assert set(upright_labels(figure.axes[0])[2:4]) == {"猫" * 6 + "…", "犬" * 6 + "…"}
    assert_nothing_touches(drawn_boxes(figure))


def test_a_part_of_the_steps(trace):
    share = shares(trace, "mass")
    (axes,) = plots.trend(trace, "mass", steps=(30, 45)).axes
    x, y = curves_of(axes)["image"]
    np.testing.assert_array_equal(x, np.arange(30, 45))
    np.testing.assert_array_equal(y, share.sel(step=slice(30, 44), curve="image").values)
    assert axes.get_xlim() == (29.5, 44.5)


def test_hostile_tokens_render(tmp_path):
    trace = build([*HOSTILE, "<", "back", ">", *HOSTILE])
    trace.data.attrs["images"] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [plots.trend(trace, tokens=True), plots.tokens(trace)]
        for i, figure in enumerate(figures):
            for suffix in ("png", "pdf", "svg"):
                plots.save(figure, tmp_path / f"{i}.{suffix}")
            assert_nothing_touches(drawn_boxes(figure))
    svg = ElementTree.parse(tmp_path / "0.svg").getroot()
    written = {"".join(node.itertext()) for node in svg.iter("{http://www.w3.org/2000/svg}text")}
    # What a reader sees: dollars are dollars, and line breaks are signs.
    assert {
        "$x_1$ $\\frac{",
        "□",
        "⏎",
        "⏎⏎",
        "⇥",
        "␣",
        "∅",
        "[31m",
        "over",
        "<&\"'>",
        "^_{",
    } <= written


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" red", "red"),
        ("a\nb\tc", "a⏎b⇥c"),
        ("\r\n", "⏎"),
        ("  ", "␣"),
        ("", "∅"),
        ("\x07", "∅"),
        ("$5", r"\$5"),
        ("\\$", r"\\$"),
        ("abcdefghijklmno", "abcdefghijklm…"),
        ("</conclusion>a", "</conclusion>a"),
        ("\U000e0041", "∅"),
        ("\U0001fae8", "□"),
        ("\ud800\ufffe", "□□"),
    ],
)
def test_readable(token, shown):
    assert readable(token) == shown


@given(st.text(st.characters(), max_size=40))
@settings(max_examples=200, deadline=None)
def test_readable_text_is_always_harmless(token):
    shown = readable(token)
    assert shown
    assert len(shown.replace("\\$", "$")) <= 14
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn") for c in shown)
    assert not mpl.cbook.is_math_text(shown)
    assert readable.__wrapped__(token) == shown


def cells_of(axes):
    """Return the cells of a heat map."""
    (cells,) = axes.collections
    return cells


def corners_of(axes) -> tuple[float, ...]:
    """Where the cells of a heat map lie (left, right, bottom, top), within the axes' limits."""
    cells = cells_of(axes)
    places = (cells.get_transform() - axes.transData).transform(
        np.asarray(cells.get_coordinates()).reshape(-1, 2)
    )
    corners = (*np.sort(places[[0, -1], 0]), *np.sort(places[[0, -1], 1]))
    np.testing.assert_allclose(corners, (*axes.get_xlim(), *axes.get_ylim()))
    return tuple(np.round(corners, 9).tolist())


def test_layers_holds_the_measure(trace):
    figure = plots.layers(trace, "mass")
    top, bottom = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    full = visual_share(trace, "mass", reduction="none")
    np.testing.assert_allclose(cells_of(top).get_array(), full.mean("head").T, rtol=1e-12)
    np.testing.assert_allclose(cells_of(bottom).get_array(), full.mean("layer").T, rtol=1e-12)
    # Lines are named by the model's layer indices 0, 2 and 5, from the bottom up.
    with style():
        figure.draw_without_rendering()
    names = {label.get_position()[1]: label.get_text() for label in top.get_yticklabels()}
    assert [names[line] for line in (0, 1, 2)] == ["0", "2", "5"]
    assert corners_of(top) == (-0.5, 119.5, -0.5, 2.5)
    # step 0, which look-back leaves out, is left out of the axis
    assert corners_of(plots.layers(trace, "look-back").axes[0]) == (0.5, 119.5, -0.5, 2.5)
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert all("fraction of attention mass" in bar.get_ylabel().replace("\n", " ") for bar in bars)


def test_layers_of_one_layer(trace):
    bottom = plots.layers(trace, "no-sink", layer=5).axes[1]
    expected = visual_share(trace, "no-sink", reduction="none").sel(layer=5).T
    np.testing.assert_array_equal(cells_of(bottom).get_array(), expected)
    assert "layer 5" in bottom.get_ylabel()


def test_layers_without_a_value_for_each_head(trace):
    figure = plots.layers(trace, "look-back")
    assert len(figure.axes) == 2  # the panel and its colour bar
    with pytest.raises(InputError, match="look-back"):
        plots.layers(trace, "look-back", layer=2)


def overlay_parts(figure):
    """Return the drawn picture, the cells over it, and the title."""
    axes = figure.axes[0]
    return axes.images[0], axes.images[1], axes.get_title()


def test_overlay_puts_each_visual_token_on_its_pixels(pictured, tmp_path):
    figure = plots.overlay(pictured, 7, image_index=1)
    picture, cells, title = overlay_parts(figure)
    np.testing.assert_array_equal(
        np.asarray(picture.get_array()), np.asarray(Image.open(tmp_path / "second.png"))
    )
    assert cells.get_extent() == picture.get_extent()
    weights = pictured.data["visual_map"].values[7].mean(0)
    grid = np.asarray(cells.get_array())
    assert grid.shape == (ROWS, COLUMNS)
    left, right, bottom, top = cells.get_extent()
    for j in range(ROWS * COLUMNS):
        # Token j of the second image stands in cell (j // 4, j % 4) of 14 x 10 pixels.
        x, y = 14 * (j % 4) + 7, 10 * (j // 4) + 5
        column = int((x - left) / (right - left) * COLUMNS)
        row = int((y - top) / (bottom - top) * ROWS)
        assert grid[row, column] == pytest.approx(weights[ROWS * COLUMNS + j], abs=1e-12)
    assert "step 7" in title
    looking = readable(pictured.tokens[6], 20)
    assert f"“{looking}” looks" in title
    assert f"“{readable(pictured.tokens[7], 20)}” follows" in title
    assert cells.get_interpolation() == "nearest"


def test_overlay_of_one_layer_and_from_the_end(pictured):
    _, cells, title = overlay_parts(plots.overlay(pictured, -1, layer=5))
    expected = pictured.data["visual_map"].values[39, 2, : ROWS * COLUMNS]
    np.testing.assert_allclose(np.asarray(cells.get_array()).ravel(), expected)
    assert "step 39" in title


def test_overlay_takes_the_image_from_elsewhere(pictured, tmp_path):
    (tmp_path / "second.png").rename(tmp_path / "moved.png")
    with pytest.raises(InputError, match="give image="):
        plots.overlay(pictured, 0, image_index=1)
    plots.overlay(pictured, 0, image_index=1, image=tmp_path / "moved.png")
    plots.overlay(pictured, 0, image_index=1, image=Image.new("L", (56, 30)))
    with pytest.raises(InputError, match="40 x 40"):
        plots.overlay(pictured, 0, image_index=1, image=tmp_path / "first.png")


def test_overlay_notices_another_image_at_the_path(pictured, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "first.png")
    with pytest.raises(InputError, match="changed"):
        plots.overlay(pictured, 0)


def test_overlay_refuses_unknown_places(pictured):
    pictured.data["visual_row"] = ("visual", np.full(2 * ROWS * COLUMNS, -1))
    with pytest.raises(InputError, match="not known"):
        plots.overlay(pictured, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 40}, "step is 40"),
        ({"step": -41}, "step is -41"),
        ({"step": 1.5}, r"step is 1\.5"),
        ({"step": True}, "step is True"),
        ({"step": 0, "image_index": 2}, "image_index is 2"),
        ({"step": 0, "image_index": -1}, "image_index is -1"),
        ({"step": 0, "layer": 1}, r"\[1\]"),
        ({"step": 0, "image": 5}, "image"),
        ({"step": 0, "image": "no such.png"}, "no such.png"),
        ({"step": 0, "width": "wide"}, "'wide'"),
    ],
)
def test_overlay_refuses_bad_input(pictured, options, message):
    with pytest.raises(InputError, match=message):
        plots.overlay(pictured, **options)


def test_overlay_needs_a_visual_map(pictured):
    without = attnlens.Trace(pictured.data.drop_vars("visual_map"))
    with pytest.raises(InputError, match="visual_map=True"):
        plots.overlay(without, 0)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t: plots.trend(t, "gaze"), "'gaze'"),
        (lambda t: plots.trend("a trace"), "not a trace"),
        (lambda t: plots.trend(t, steps=(5, 5)), r"\(5, 5\): give"),
        (lambda t: plots.trend(t, steps=4), "steps is 4"),
        (lambda t: plots.trend(t, steps=(0, 1)), "no step"),
        (lambda t: plots.trend(t, steps=(500, 600)), "no step"),
        (lambda t: plots.trend(t, width="three-column"), "'three-column'"),
        (lambda t: plots.trend(t, width=float("nan")), "nan"),
        (lambda t: plots.trend(t, width=True), "True"),
        (lambda t: plots.tokens(t, per_row=0), "per_row is 0"),
        (lambda t: plots.tokens(t, per_row=2.5), r"per_row is 2\.5"),
        (lambda t: plots.layers(t, layer=1), r"\[1\]"),
    ],
)
def test_bad_input_is_refused(trace, draw, message):
    with pytest.raises(InputError, match=message):
        draw(trace)


def test_a_response_of_one_token():
    trace = build(["."])
    with pytest.raises(InputError, match="no step"):
        plots.trend(trace, "look-back")
    for figure in (plots.trend(trace, "mass", tokens=True), plots.tokens(trace, "mass")):
        (axes,) = figure.axes
        assert curves_of(axes)["image"][1].shape == (1,)
    plots.layers(trace, "mass")


@pytest.mark.slow
def test_a_long_response_stays_within_bounds():
    trace = build(pieces(2048), layers=(0,), heads=1)
    figure = plots.tokens(trace, "mass")
    assert len(figure.axes) == 41
    assert max(figure.get_size_inches()) * 200 < 2**16


def test_a_picture_is_never_larger_than_matplotlib_draws(tmp_path):
    # 400 inches at 200 pixels an inch would be 80,000 pixels
    path = plots.save(mpl.figure.Figure(figsize=(0.2, 400)), tmp_path / "tall.png")
    with Image.open(path) as written:
        assert 60_000 < written.size[1] < 2**16


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_saved_files_are_whole_and_the_same_each_time(trace, tmp_path, suffix):
    first, second = (
        plots.save(plots.trend(trace), tmp_path / "new" / f"{name}.{suffix}") for name in "ab"
    )
    data = first.read_bytes()
    assert data == second.read_bytes()
    if suffix == "png":
        with Image.open(first) as picture:
            picture.load()
            assert picture.size[0] == round(200 * WIDTHS["two-column"])
    elif suffix == "pdf":
        assert data.startswith(b"%PDF")
        assert data.rstrip().endswith(b"%%EOF")
        assert b"/Type0" in data or b"/CIDFontType2" in data  # TrueType, not Type 3
        assert b"/Type3" not in data
    else:
        assert "<text" in data.decode()
        ElementTree.fromstring(data)
    assert sorted(p.name for p in first.parent.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_failed_save_leaves_the_old_file(trace, tmp_path, monkeypatch):
    path = plots.save(plots.trend(trace), tmp_path / "figure.png")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            plots.save(plots.trend(trace, "mass"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_format_and_path(trace, tmp_path):
    figure = plots.trend(trace)
    assert plots.save(figure, tmp_path / "model-2.5", "pdf").name == "model-2.5.pdf"
    assert plots.save(figure, tmp_path / "a.PNG").name == "a.PNG"
    for name, file_format in (("a.jpg", None), ("a", None), ("a.png", "gif"), ("a.png", "pdf")):
        with pytest.raises(InputError, match=file_format or name):
            plots.save(figure, tmp_path / name, file_format)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="folder"):
        plots.save(figure, tmp_path / "folder.png")
    with pytest.raises(InputError, match="not a folder"):
        plots.save(figure, tmp_path / "a.PNG" / "b.png")


def test_users_parameters_stay_and_do_not_show(trace, tmp_path):
    plain = plots.save(plots.trend(trace), tmp_path / "plain.svg").read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        figure = plots.trend(trace)
        plots.layers(trace)
        plots.tokens(trace)
        changed = plots.save(figure, tmp_path / "changed.svg").read_bytes()
        figure._repr_png_()
        assert dict(mpl.rcParams) == before
    assert changed == plain


def test_notebooks_get_a_picture(trace):
    assert plots.trend(trace)._repr_png_().startswith(b"\x89PNG")


def test_seaborn_and_pyplot_are_imported_with_the_first_figure():
    code = (
        "import sys, attnlens.plots; sys.exit(bool({'matplotlib.pyplot', 'seaborn'} "
        "& set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_figures_stay_outside_pyplot(trace):
    """And the parameters that seaborn keeps for its reset_orig() are the user's."""
    plots.layers(trace)
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
    code = (
        "import matplotlib as mpl; mpl.rcParams['font.size'] = 31\n"
        "from attnlens.plots.style import style\n"
        "with style():\n    import seaborn\n"
        "seaborn.reset_orig(); assert mpl.rcParams['font.size'] == 31"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
