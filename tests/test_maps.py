"""Maps of visual tokens: those of chosen heads, and which are kept without being asked for."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture, tiny_vlm, unpainted_figures

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.force import twins
from attnlens.interventions import AtStep, Copy, Knockout
from attnlens.models.families import parts_of
from attnlens.recording import maps
from attnlens.recording.maps import choose_heads, is_small
from attnlens.recording.mass import Mass, rows_before
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import provenance
from attnlens.runs.settings import RecordingSettings, ReplaySettings
from attnlens.testbed import held_out_sample

NEW = 12
OPTIONS = {"min_new_tokens": NEW, "do_sample": False}
HEADS = [(2, 3), (0, 1), (2, 0)]
IN_ORDER = [(0, 1), (2, 0), (2, 3)]


@pytest.fixture(scope="module")
def tiny(tokenizer):
    """A small model under eager attention, whose weights its layers return."""
    vlm = tiny_vlm(tokenizer, "qwen2_5_vl")
    vlm.model.set_attn_implementation("eager")
    return vlm


@pytest.fixture(scope="module")
def one(tiny):
    return tiny.prompt(picture(), "Is there a red circle?", "back")


@pytest.fixture(scope="module")
def several(tiny):
    return tiny.prompt([picture(112, 140, 1), picture(168, 112, 2)], "How many?", "cot")


@contextmanager
def returned_weights(vlm):
    """By layer and by the number of keys up to a query's own: what the layer returns of it."""
    rows, hooks = [], []
    for module in parts_of(vlm.model).attention:
        rows.append({})

        def see(_module, _arguments, output, here=rows[-1]):
            tokens, keys = output[1].shape[2:]
            for row in range(tokens):
                count = keys - tokens + row + 1
                here[count] = output[1][:, :, row, :count].numpy().copy()

        hooks.append(module.register_forward_hook(see))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def check(trace, rows, segments, row=0):
    """Compare the maps of ``HEADS`` with the weights that the layers returned."""
    data = trace.data
    assert list(zip(data["mapped_layer"].values, data["mapped_head"].values, strict=True)) == (
        IN_ORDER
    )
    assert data["mapped_layer"].dtype == data["mapped_head"].dtype == np.int64
    found = data["visual_map_by_head"]
    visual = np.flatnonzero(segments == "visual")
    assert found.dims == ("step", "mapped", "visual")
    assert found.shape == (data.sizes["step"], 3, len(visual))
    assert found.dtype == np.float32
    padding = int((segments == "padding").sum())
    for step, count in enumerate(data["keys"].values.sum(-1) + padding):
        for place, (layer, head) in enumerate(IN_ORDER):
            want = rows[layer][int(count)][row, head][visual]
            np.testing.assert_allclose(found.values[step, place], want, atol=1e-5)


@pytest.mark.parametrize("visual_map", [False, True])
def test_maps_of_heads_of_a_generation(tiny, several, visual_map):
    plain = tiny.model.generate(**several.inputs, max_new_tokens=NEW, **OPTIONS)
    recorder = attnlens.record(tiny, several, visual_map=visual_map, map_heads=HEADS, every=5)
    with returned_weights(tiny) as rows, recorder:
        tokens = tiny.model.generate(**several.inputs, max_new_tokens=NEW, **OPTIONS)
    assert torch.equal(tokens, plain)
    check(recorder.trace, rows, several.segments)
    assert ("visual_map" in recorder.trace.data) == visual_map
    grid = several.grids[1]
    second = recorder.trace.data["visual_map_by_head"]
    second = second.sel(visual=second["visual_image"] == 1)
    assert second.sizes["visual"] == grid[0] * grid[1]
    assert second["visual_column"].values[: grid[1]].tolist() == list(range(grid[1]))


def test_maps_of_heads_of_a_padded_batch(tiny, one, several):
    batch = tiny.batch([one, several])
    assert (batch.segments == "padding").any()
    with (
        returned_weights(tiny) as rows,
        attnlens.record(tiny, batch, map_heads=HEADS, prompt_rows="all") as recorder,
    ):
        tiny.model.generate(**batch.inputs, max_new_tokens=NEW, **OPTIONS)
    for row, trace in enumerate(recorder.traces):
        check(trace, rows, batch.segments[row], row)


@pytest.mark.parametrize("intervention", [Copy(when=AtStep(5)), Knockout(when=AtStep(5))])
def test_maps_of_heads_under_an_intervention(tiny, one, intervention):
    with returned_weights(tiny) as rows:
        trace = attnlens.run(tiny, one, NEW, intervention, map_heads=HEADS, **OPTIONS)
    (event,) = trace.attrs["interventions"]
    assert event["inserted"] > 0 or not trace.untouched
    check(trace, rows, one.segments)


@pytest.mark.parametrize("intervention", [None, Copy(when=AtStep(5))])
def test_maps_of_heads_of_a_replay(tiny, one, intervention):
    answer = attnlens.run(tiny, one, NEW, **OPTIONS)
    with returned_weights(tiny) as rows:
        trace = attnlens.replay(tiny, one, answer, intervention, map_heads=iter(HEADS))
    check(trace, rows, one.segments)
    assert trace.tokens == answer.tokens


def test_the_mean_over_all_heads_is_the_visual_map(tiny, several):
    heads = parts_of(tiny.model).head_count
    every = [(layer, head) for layer in (0, 2) for head in range(heads)]
    options = {"layers": [0, -1], "visual_map": True, "map_heads": every, **OPTIONS}
    assert parts_of(tiny.model).layer_count == 3
    data = attnlens.run(tiny, several, NEW, **options).data
    mean = data["visual_map_by_head"].groupby("mapped_layer").mean()
    for layer in (0, 2):
        here = mean.sel(mapped_layer=layer).transpose("step", "visual").values
        np.testing.assert_allclose(here, data["visual_map"].sel(layer=layer), atol=1e-6)


def test_rows_that_are_taken_back_leave_the_maps():
    """Also where a prompt row, which has no map, comes first."""
    by_head = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    mass = Mass(
        by_column=torch.zeros(2, 4, 5, 6),
        visual_weight=None,
        visual_nonzero=torch.zeros(2, 3, dtype=torch.int32),
        visual_by_head=by_head,
    )
    ((positions, left),) = rows_before([([8, 9, 10, 11], mass)], 11)
    assert positions == [8, 9, 10]
    assert torch.equal(left.visual_by_head, by_head[:, :2])


def test_maps_of_heads_are_kept_on_disk(tiny, one, tmp_path):
    trace = attnlens.run(tiny, one, 3, map_heads=HEADS, do_sample=False)
    trace.save(tmp_path / "one.zarr")
    assert attnlens.Trace.load(tmp_path / "one.zarr").data.identical(trace.data)


@pytest.mark.parametrize(
    ("given", "layers", "said"),
    [
        ([(3, 0)], None, r"layer 3 of \(3, 0\) is not recorded: name one of 0, 1, 2"),
        ([(-1, 0)], None, r"layer -1 of \(-1, 0\) is not recorded"),
        ([(1, 0)], [0, 2], r"layer 1 of \(1, 0\) is not recorded: name one of 0, 2"),
        ([(1, 4)], None, "no head 4 in layer 1: a layer has heads 0 to 3"),
        ([(1, -1)], None, "no head -1 in layer 1"),
        ([(1, 2), (0, 2), (1, 2)], None, r"\(1, 2\) is given twice"),
        ([1, 2], None, r"1 is no \(layer, head\) pair"),
        ([(1, 2, 3)], None, r"\(1, 2, 3\) is no \(layer, head\) pair"),
        ([(1, 0.0)], None, r"\(1, 0.0\) is no \(layer, head\) pair"),
        ([(True, 0)], None, r"\(True, 0\) is no \(layer, head\) pair"),
        (["3.1"], None, r"'3.1' is no \(layer, head\) pair"),
        ("3.1", None, r"map_heads='3.1': give \(layer, head\) pairs"),
        (5, None, r"map_heads=5: give \(layer, head\) pairs"),
    ],
)
def test_heads_that_are_refused_before_anything_is_generated(tiny, one, given, layers, said):
    with pytest.raises(InputError, match=said):
        attnlens.record(tiny, one, map_heads=given, layers=layers)


def test_heads_are_taken_in_order_and_numpy_numbers_too():
    given = (np.array(pair) for pair in HEADS)
    assert choose_heads(given, range(3), 4) == {0: (1,), 2: (0, 3)}
    assert choose_heads(None, range(3), 4) == choose_heads([], range(3), 4) == {}


# Which map is kept where nobody says


def test_the_map_is_small_up_to_64_mib():
    assert is_small(16, 1024, 1024)
    assert is_small(16, 1024)
    assert not is_small(16, 1024, 1025)
    assert not is_small(16, 1025)
    assert not is_small(17, 1024)
    assert is_small(16, 512, batch=2)
    assert not is_small(16, 513, batch=2)


def test_the_map_is_kept_while_it_is_small(tiny, one, several, monkeypatch):
    def kept(limit, prompt=one, **options):
        monkeypatch.setattr(maps, "MOST_BYTES", limit)
        return "visual_map" in attnlens.run(tiny, prompt, NEW, do_sample=False, **options).data

    visual = int((one.segments == "visual").sum())
    whole = 4 * 3 * visual * NEW
    assert kept(whole)
    assert not kept(whole - 1)
    assert kept(whole - 1, visual_map=True)
    assert not kept(whole, visual_map=False)
    assert kept(whole // 3, layers=iter([1]))
    assert not kept(whole // 3 - 1, layers=iter([1]))

    answer = attnlens.run(tiny, one, 5, do_sample=False)
    for limit in (4 * 3 * visual * 5, 4 * 3 * visual * 5 - 1):
        monkeypatch.setattr(maps, "MOST_BYTES", limit)
        data = attnlens.replay(tiny, one, answer).data
        assert ("visual_map" in data) == (limit == 4 * 3 * visual * 5)

    # the length is not known yet, and a batch is as wide as its widest prompt
    batch = tiny.batch([one, several])
    for prompt, most in ((one, visual), (batch, 2 * int((several.segments == "visual").sum()))):
        whole = 4 * 3 * most * 1024
        for limit in (whole, whole - 1):
            monkeypatch.setattr(maps, "MOST_BYTES", limit)
            with attnlens.record(tiny, prompt) as recorder:
                tiny.model.generate(**prompt.inputs, max_new_tokens=2)
            for trace in recorder.traces:
                assert ("visual_map" in trace.data) == (limit == whole)


def test_a_map_of_an_image_whose_tiles_are_not_known(tiny, one):
    bare = replace(one, images=(replace(one.images[0], tiles=()),))
    data = attnlens.run(tiny, bare, 2, do_sample=False).data
    assert "visual_map" in data
    assert (data["visual_row"] == -1).all()


def test_what_compares_runs_keeps_no_map(tiny, one):
    answer = attnlens.run(tiny, one, 4, do_sample=False)
    assert "visual_map" in answer.data
    found = twins(tiny, one, answer)
    assert not any("visual_map" in twin.data for twin in found.values())


# Commands


@pytest.mark.parametrize("kind", [RecordingSettings, ReplaySettings])
@pytest.mark.parametrize("is_video", [False, True])
def test_results_follow_from_maps_only_where_these_differ_from_before(kind, is_video):
    question = Question("a.png", "How many?", is_video=is_video)

    def settings(**given):
        return provenance(question, kind(mode="back", **given), {})["settings"]

    before = settings()
    assert not {"visual_map", "map_heads"}.intersection(before)
    assert "layers" in before
    assert settings(visual_map=is_video) == before
    assert settings(visual_map=not is_video) == {**before, "visual_map": not is_video}
    assert settings(map_heads=[(3, 1)]) == {**before, "map_heads": [(3, 1)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sample = held_out_sample(3, 0, "back")
    sample.scene.draw().save(folder / "a.png")
    line = {"image": "a.png", "question": sample.question.text}
    (folder / "q.jsonl").write_text(json.dumps(line))
    (folder / "answers.jsonl").write_text(json.dumps(line | {"response": "One is red."}))
    return folder


def command(name, folder, out, *options):
    asked = {
        "trend": ["--image_path", folder / "a.png", "--question", "How many?"],
        "data": ["--data", folder / "q.jsonl"],
        "replay": ["--data", folder / "answers.jsonl", "--images", folder],
    }[name]
    asked += [] if name == "replay" else ["--max_new_tokens", 3]
    program = "trend" if name == "data" else name
    with unpainted_figures():
        return main([program, *map(str, [*asked, "--save_folder", out, *options])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trend", "data", "replay"])
def test_maps_of_a_command(name, folder, tmp_path, testbed, monkeypatch):
    monkeypatch.setattr("attnlens.models.load.load", lambda *_, **__: testbed)

    def kept(*options):
        assert command(name, folder, tmp_path, *options) == 0
        (path,) = tmp_path.rglob("*trace.zarr")
        data = attnlens.Trace.load(path).data
        return {n for n in data if str(n).startswith("visual_map")}, data

    assert kept()[0] == ({"visual_map"} if name == "trend" else set())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("settings.json")}
    assert kept("--no-visual-map")[0] == set()
    if name != "trend":  # the same results
        assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("settings.json")}
    assert kept("--visual_map")[0] == {"visual_map"}
    names, data = kept("--no_visual_map", "--map_heads", "3.1,2.0")
    assert names == {"visual_map_by_head"}
    assert data["mapped_layer"].values.tolist() == [2, 3]
    assert data["mapped_head"].values.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--map_heads", "3"], "'3' is no head: name layer and head, such as 3.1,12.7"),
        (["--map_heads", "3.1,x.2"], "'x.2' is no head"),
        (["--map_heads=-1.2"], "'-1.2' is no head"),
        (["--map_heads", "3.1,2.0,3.1"], "3.1 is given twice"),
        (["--map_heads", "3.9"], "no head 9 in layer 3"),
        (["--map_heads", "3.1", "--layers", "0,1"], "layer 3 of (3, 1) is not recorded"),
        (["--visual_map", "--no_visual_map"], "not allowed with"),
    ],
)
@pytest.mark.parametrize("name", ["trend", "data", "replay"])
def test_heads_that_a_command_refuses(
    name, options, said, folder, tmp_path, testbed, monkeypatch, capsys
):
    monkeypatch.setattr("attnlens.models.load.load", lambda *_, **__: testbed)
    try:
        status = command(name, folder, tmp_path / "out", *options)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("*.zarr"))
