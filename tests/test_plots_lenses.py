"""Figures of the lenses: what they show, at both widths."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from conftest import picture

import attnlens
from attnlens import lenses, plots
from attnlens.errors import InputError

WIDTHS = ("one-column", "two-column")


@pytest.fixture(scope="module")
def made(tiny):
    """What each figure is drawn from."""
    prompt, other = (tiny.prompt(picture(seed=s), "How many?", "back") for s in (0, 7))
    trace = attnlens.run(tiny, prompt, 6, do_sample=False)
    ids = trace.data["predicted_token_id"].values.tolist()
    pair = lenses.PromptPair(prompt, other, ids, 3, ids[3], ids[1])
    own = lenses.Edges("response", "response")
    return {
        "attribution": lenses.direct_logit_attribution(tiny, prompt, trace, 3, against=ids[1]),
        "logit_lens": lenses.logit_lens(tiny, prompt, trace),
        "heads": lenses.looking_heads(tiny, prompt, trace, [2, 3]),
        "windows": lenses.window_sweep(tiny, prompt, trace),
        "patching": lenses.activation_patching(tiny, pair),
        "paths": lenses.path_patching(tiny, pair, rows="last"),
        "edges": lenses.edge_knockout(tiny, prompt, trace, [lenses.Edges(), own]),
    }


def matrices(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def caption(figure):
    return next(text.get_text() for text in figure.texts if text.get_gid() == "caption")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["attribution", "logit_lens", "heads", "windows", "patching", "paths", "edges"]
)
def test_each_is_drawn_and_saved(made, tmp_path, name, width):
    names = [["image", "own keys"]] if name == "edges" else []
    figure = getattr(plots, name)(made[name], *names, width=width)
    plots.save(figure, tmp_path / f"{name}.pdf")
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert len(caption(figure)) > 60
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel()


def test_what_is_drawn_is_what_was_measured(made):
    data = made["attribution"]
    by_part, by_place = matrices(plots.attribution(data))
    assert np.allclose(by_part[:, :4], data["by_head"])
    assert np.allclose(by_part[:, 4], data["by_mlp"])
    assert np.allclose(by_place.ravel(), data["by_visual"].sum(("layer", "head")))
    data = made["patching"]
    (change,) = matrices(plots.patching(data))
    assert np.allclose(change, data["residual"])
    data = made["paths"]
    best, places = matrices(plots.paths(data))
    restored = data["path"].values / float(data["clean"] - data["corrupted"])
    whole = float(data["clean"] - data["corrupted"])
    assert np.allclose(best / whole, restored.max(-1))
    layer, head = np.unravel_index(restored.max(-1).argmax(), best.shape)
    assert np.allclose(places.ravel(), data["path"].values[layer, head])
    (change,) = matrices(plots.edges(made["edges"], ["image", "own"]))
    assert np.allclose(change, made["edges"]["change"])
    figure = plots.logit_lens(made["logit_lens"], np.array([0, 4]))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert len(words) == 6
    (likely,) = matrices(figure)
    expected = np.exp(made["logit_lens"]["top_log_probability"][:, [0, 4], 0])
    assert np.allclose(likely, expected)
    change, *_ = matrices(plots.heads(made["heads"]))
    assert np.allclose(change, made["heads"]["change"])
    line = plots.windows(made["windows"], [1, 2]).axes[0].lines[-1]
    assert np.allclose(line.get_ydata(), made["windows"]["change"][:, [1, 2]].mean("step"))


@pytest.mark.parametrize(
    "name", ["attribution", "logit_lens", "heads", "windows", "patching", "paths"]
)
def test_what_another_function_made_is_refused(name):
    with pytest.raises(InputError, match=r"give what attnlens\.lenses\.\w+ returns"):
        getattr(plots, name)(xr.Dataset({"mass": ("step", [1.0])}))


def test_what_has_other_dimensions_is_refused(made):
    for name, data in (("windows", "heads"), ("windows", "edges")):
        with pytest.raises(InputError, match=r"give what attnlens\.lenses\.window_sweep returns"):
            getattr(plots, name)(made[data])
    with pytest.raises(InputError, match=r"give what attnlens\.lenses\.edge_knockout returns"):
        plots.edges(made["windows"], ["a"])
    with pytest.raises(InputError, match="1 names were given: give 2, one a cut"):
        plots.edges(made["edges"], ["image"])


def test_images_that_make_no_difference_are_not_drawn(made):
    for name in ("patching", "paths"):
        same = made[name].assign(clean=made[name]["corrupted"])
        with pytest.raises(InputError, match="there is nothing to restore"):
            getattr(plots, name)(same)


def test_positions_that_are_not_there_are_refused(made):
    with pytest.raises(InputError, match=r"positions=\[9\]: give some from 0 to 5"):
        plots.logit_lens(made["logit_lens"], [9])
    with pytest.raises(InputError, match=r"steps=\[\]: give some from 0 to 5"):
        plots.windows(made["windows"], [])
    several = made["attribution"].assign_coords(visual_row=("visual", np.full(16, -1)))
    with pytest.raises(InputError, match="the prompt has several images"):
        plots.attribution(several)


@pytest.fixture
def rows():
    """Two sizes; at the second, one way takes more than the limit."""

    def row(peer, visual, time, memory):
        sizes = {"visual": visual, "new": 8, "limit_gib": 4.0, "repeats": 3}
        return {"peer": peer, "time_ratio": time, "memory_ratio": memory, **sizes}

    return [
        row("plain", 16, 1, 1),
        row("recorded", 16, 1.1, 1.01),
        row("eager", 16, 1.3, 2.5),
        row("plain", 64, 1, 1),
        row("recorded", 64, 1.2, 1.02),
        row("eager", 64, None, None),
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_peers_are_drawn_until_they_run_out_of_memory(rows, width):
    figure = plots.peers(rows, width=width)
    time, memory = figure.axes
    lines = {line.get_label(): line for line in memory.lines}
    assert [text.get_text() for text in time.get_xticklabels()] == ["16 + 8", "64 + 8"]
    assert lines["attnlens.record"].get_ydata().tolist() == [1.01, 1.02]
    eager = lines["with hidden states, too"].get_ydata()
    assert eager[0] == 2.5
    assert np.isnan(eager[1])
    crosses = [line for line in memory.lines if line.get_marker() == "x"]
    assert [list(map(list, line.get_data())) for line in crosses] == [[[0, 1], [2.5, 2.5]]]
    assert "more than 4 GiB" in caption(figure)


@pytest.mark.parametrize("given", [[], [{"peer": "plain"}], [3]])
def test_what_is_no_row_of_peers_is_refused(given):
    with pytest.raises(InputError, match="give the rows that"):
        plots.peers(given)
