"""Dilution: the split of log-odds, exponents, evenness, on closed forms and real attention."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens import plots
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.measures import dilution, insertion, log_odds
from attnlens.measures.theorems.dilution import evenness
from attnlens.measures.theorems.exponent import exponents
from attnlens.measures.theorems.log_odds import change, difference
from attnlens.measures.theorems.synthetic import synthetic_attention
from attnlens.segments import SEGMENTS


def test_the_split_is_that_of_the_scores_themselves(tiny):
    """Preference from full attention matrices: the mean weight of a set is its mean exp score."""
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    trace = attnlens.run(tiny, prompt, 12, do_sample=False, min_new_tokens=12)
    ids = trace.data["predicted_token_id"].values.tolist()
    whole = torch.cat([prompt.inputs["input_ids"], torch.tensor([ids[:-1]])], 1)
    eager = copy.deepcopy(tiny.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == tiny.model.config.image_token_id).int(),
            pixel_values=prompt.inputs["pixel_values"],
            image_grid_thw=prompt.inputs["image_grid_thw"],
            output_attentions=True,
        ).attentions
    first = len(prompt.segments) - 1
    for sink in (True, False):
        terms = log_odds(trace, sink=sink)
        assert set(terms.coords) == {"step", "layer", "head", "predicted_token", "region"}
        assert np.allclose(terms["log_odds"], terms["counts"] + terms["preference"], atol=1e-12)
        for step in range(12):
            seen = np.array([*prompt.segments, *["response"] * 12])[: first + 1 + step]
            visual = np.flatnonzero(seen == "visual")
            rest = np.flatnonzero((seen != "visual") & (sink | (seen != "sink")))
            assert terms["counts"].values[step] == pytest.approx(np.log(len(visual) / len(rest)))
            assert terms["key_share"].values[step] == pytest.approx(
                len(visual) / (len(visual) + len(rest))
            )
            for layer, of_layer in enumerate(weights):
                row = of_layer[0, :, first + step].double().numpy()
                want = np.log(row[:, visual].mean(-1)) - np.log(row[:, rest].mean(-1))
                assert np.allclose(terms["preference"].values[step, layer], want, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    visual=st.integers(1, 40),
    text=st.integers(1, 20),
    steps=st.integers(3, 30),
    gap=st.floats(-4, 4),
)
def test_equal_scores_are_diluted_exactly(visual, text, steps, gap):
    run = synthetic_attention(steps, visual=visual, text=text, gap=gap)
    terms = log_odds(run)
    assert np.allclose(terms["preference"], gap, atol=1e-9)
    rest = text + np.arange(steps)
    assert np.allclose(terms["counts"], np.log(visual / rest))
    if gap == 0:
        assert np.allclose(terms["mass"], (visual / (visual + rest))[:, None, None])
    even = evenness(run)
    assert np.isnan(even.sel(segment=["sink", "copied"])).all()
    if gap == 0:
        assert np.allclose(even.sel(segment=["visual", "query"]), 1)


def test_a_sink_takes_what_the_closed_form_says():
    run = synthetic_attention(40, visual=30, text=10, gap=0.5, sink=6.0)
    rest = 10 + np.arange(40)
    with_sink = 0.5 - np.log((np.exp(6.0) + rest) / (rest + 1))
    assert np.allclose(log_odds(run)["preference"], with_sink[:, None, None])
    without = log_odds(run, sink=False)
    assert np.allclose(without["preference"], 0.5)
    assert np.allclose(without["counts"], np.log(30 / rest))
    # with the sink, more text makes the mean of the rest smaller: dilution by one key less even
    found = dilution([run, run])
    assert found.change_without_sink.preference.mean == pytest.approx(0)
    assert found.change_without_sink.dilution_share == pytest.approx(1)
    assert found.change.preference.mean > 0.1


def test_scattered_scores_come_out_near_their_gap():
    run = synthetic_attention(20, visual=4000, text=4000, gap=1.2, scatter=(0.7, 0), shape=(1, 4))
    preference = log_odds(run)["preference"].values
    assert np.allclose(preference, 1.2, atol=0.1)
    assert preference.std() > 1e-4


def test_exponents_of_powers_are_found_through_outliers():
    rng = np.random.default_rng(0)
    share = np.geomspace(0.5, 0.05, 60)
    truth = np.array([[-0.5, 0.0], [1.0, 2.3]])
    curves = np.log(share)[:, None, None] * truth + rng.normal(0, 0.01, (60, 2, 2))
    curves[::9] += 3.0  # a ninth of the steps far off
    curves[5, 0, 0] = -np.inf
    assert np.allclose(exponents(curves, np.log(share)), truth, atol=0.05)
    assert np.isnan(exponents(np.full((60, 1), np.nan), np.log(share))).all()
    assert np.isnan(exponents(curves, np.zeros(60))).all()
    long = np.log(np.geomspace(0.5, 0.05, 3000))
    assert exponents(long[:, None] * 1.7, long) == pytest.approx(1.7)


def test_even_attention_has_exponent_one_and_is_all_dilution():
    visual = (20, 22, 26, 30, 33, 37, 41, 45)
    runs = [synthetic_attention(60, visual=v, text=8) for v in visual]
    found = dilution(runs)
    assert found.exponent == pytest.approx(1)
    assert np.allclose(found.by_head["exponent"], 1)
    assert found.falling == found.falling_clearly == 1
    assert found.change.dilution_share == pytest.approx(1)
    assert found.change.preference.mean == pytest.approx(0, abs=1e-9)
    assert found.key_share_first == pytest.approx(np.mean([v / (v + 8) for v in visual]))
    assert found.key_share_last == pytest.approx(np.mean([v / (v + 67) for v in visual]))
    assert found.samples == 8
    assert found.steps == (60,) * 8
    words = " ".join(found.verdict())
    assert "100% of the fall is key counts" in words
    assert "from 0-25% of the run to 75-100% of the run" in words
    few = dilution(runs[:3])  # no interval, and no word of one
    assert few.change.dilution_share == pytest.approx(1)
    assert "3 runs give no interval" in few.verdict()[0]
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == found.verdict()


def test_a_model_that_turns_away_is_told_from_dilution():
    """Between two windows: counts by hand, the rest is the gap that was lost."""
    gaps, texts = np.linspace(1.0, -1.0, 50), range(10, 50, 2)
    runs = [synthetic_attention(50, visual=40, text=t, gap=gaps + 0.01 * t) for t in texts]
    found = dilution(runs, between=((0, 10), (40, 50)))
    steps = np.arange(50)
    counts = [
        np.log(40 / (t + steps[40:])).mean() - np.log(40 / (t + steps[:10])).mean() for t in texts
    ]
    lost = gaps[40:].mean() - gaps[:10].mean()
    assert found.change.counts.mean == pytest.approx(np.mean(counts))
    assert found.change.preference.mean == pytest.approx(lost)
    assert found.change.log_odds.mean == pytest.approx(np.mean(counts) + lost)
    share = np.mean(counts) / (np.mean(counts) + lost)
    assert found.change.dilution_share == pytest.approx(share)
    assert found.change.dilution_share_low <= share <= found.change.dilution_share_high
    assert found.exponent > 1
    assert "more steeply than in proportion" in found.verdict()[0]
    rising = dilution([synthetic_attention(50, gap=-3 * gaps) for _ in range(8)])
    assert "goes the other way" in rising.verdict()[0]
    assert "the rise is preference, against key counts" in rising.verdict()[2]
    assert rising.falling == 0
    slowed = dilution([synthetic_attention(50, gap=-0.3 * gaps) for _ in range(2)])
    assert "the fall is key counts, against preference" in slowed.verdict()[2]


@pytest.mark.parametrize("gap", [-2.0, 0.0, 1.0])
def test_pure_dilution_is_all_counts_whatever_its_exponent(gap):
    """A constant preference: alpha is (1 - mass) / (1 - r), the share of counts is 1."""
    run = synthetic_attention(100, visual=64, text=32, gap=gap, shape=(1, 1))
    found = dilution(run)
    assert found.change.dilution_share == pytest.approx(1)
    assert np.isnan(found.change.dilution_share_low)
    assert "100% of the fall is key counts" in found.verdict()[2]
    r, mass = (found.curves[name].to_numpy() for name in ("key_share", "mass"))
    slopes = (1 - mass) / (1 - r)
    assert slopes.min() <= found.exponent <= slopes.max()
    assert (found.exponent > 1) == (gap < 0) or gap == 0
    assert "over 1 run =" in found.verdict()[2]
    assert found.undefined == 0


def test_steps_without_log_odds_are_counted():
    run = synthetic_attention(20)
    run["mass"][4:9, 0, 0, list(run["segment"].values).index("visual")] = 0.0
    found = dilution(run)
    assert found.undefined == pytest.approx(5 / 80)
    assert found.settings == {
        "layers": None,
        "include_copied": False,
        "confidence": 0.95,
    }


def test_traces_are_measured_one_by_one():
    alive = []

    def load():
        for i in range(3):
            alive.append(i)
            yield synthetic_attention(30, visual=20 + i)
            assert alive == list(range(i + 1))  # the next one is made when this one is done

    runs = [synthetic_attention(30, visual=20 + i) for i in range(3)]
    assert dilution(load()).as_dict() == dilution(runs).as_dict()


def test_regions_are_windows_and_each_run_may_have_its_own(testbed):
    prompts = [
        testbed.prompt(s.scene.draw(), s.question.text, "back")
        for s in (attnlens.testbed.held_out_sample(3, i, "back", looks=1) for i in range(2))
    ]
    traces = [attnlens.run(testbed, p, 400, do_sample=False) for p in prompts]
    found = dilution(traces, between=("think", "back"))
    assert found.between == ("think", "back")
    assert found.change.samples == 2
    windows = []
    for trace in traces:
        spans = {r.name: (r.start, r.stop) for r in reversed(trace.regions)}
        windows.append((spans["think"], spans["back"]))
    same = dilution(traces, between=windows)
    assert same.change.as_dict() == found.change.as_dict()
    # counts cannot rise without insertions: the rise inside <back> is preference
    assert found.change.counts.mean < 0 < found.change.preference.mean
    with pytest.raises(InputError, match="'REFLECTION'"):
        dilution(traces, between=("think", "REFLECTION"))


def test_copied_tokens_count_where_asked(tiny):
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    chosen = attnlens.interventions.Copy(when=attnlens.interventions.AtStep(5))
    trace = attnlens.run(tiny, prompt, 12, chosen, do_sample=False, min_new_tokens=12)
    plain, both = log_odds(trace), log_odds(trace, include_copied=True)
    assert plain["key_share"].values[5] < plain["key_share"].values[4]
    # Theorem 3.2: with k more visual keys of L the part is (L_c + k) / (L + k), and larger
    count, total = 20, len(prompt.segments) + 5
    assert both["key_share"].values[5] == pytest.approx((count + 20) / (total + 22))
    assert both["key_share"].values[5] > both["key_share"].values[4]
    assert np.allclose(both["mass"][:5], plain["mass"][:5])


@given(
    st.integers(1, 2000),
    st.lists(st.integers(0, 2000), min_size=5, max_size=5).filter(any),
    st.integers(1, 2000),
)
def test_inserting_raises_the_part_of_the_keys(visual, rest, inserted):
    """Theorem 3.2 as a property of counts, on the keys of a trace: r' > r."""
    others = [name for name in SEGMENTS if name not in ("visual", "copied")]
    keys = np.zeros((2, len(SEGMENTS)), dtype=np.int64)
    for name, count in zip(["visual", *others], [visual, *rest], strict=True):
        keys[:, SEGMENTS.index(name)] = count
    keys[1, SEGMENTS.index("copied")] = inserted
    even = np.broadcast_to((keys / keys.sum(1, keepdims=True))[:, None, None], (2, 1, 1, 7))
    run = xr.Dataset(
        {
            "mass": (("step", "layer", "head", "segment"), even),
            "keys": (("step", "segment"), keys),
        },
        {"step": [0, 1], "layer": [0], "head": [0], "segment": list(SEGMENTS)},
    )
    found = log_odds(run, include_copied=True)
    before, after = found["key_share"].values
    total = visual + sum(rest)
    assert before == pytest.approx(visual / total)
    assert after == pytest.approx((visual + inserted) / (total + inserted))
    assert after > before
    # with equal scores mass is that part, and so rises with it
    np.testing.assert_allclose(found["mass"].values[:, 0, 0], [before, after])
    np.testing.assert_allclose(found["preference"].values, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.1, 2.0, "more steeply than in proportion"),
        (0.2, 0.8, "less steeply than in proportion"),
        (0.5, 1.5, "1, in proportion, is not ruled out"),
        (-0.2, 0.5, "less steeply than in proportion, if at all"),
        (-0.2, 1.5, "neither proportionality nor independence is ruled out"),
        (-0.9, -0.1, "mass goes the other way"),
    ],
)
def test_the_exponent_is_compared_with_proportion_by_its_interval(low, high, said):
    found = dilution([synthetic_attention(8, gap=0.1 * i) for i in range(3)])
    middle = (low + high) / 2
    one = replace(found, exponent=middle, exponent_low=low, exponent_high=high)
    assert one.verdict()[0].endswith(f"{said}.")


def insertions(gap, counts=(0, 8, 16, 32), text=12):
    """Twins in which so many copies are seen from step 10 on."""
    return {
        str(k): synthetic_attention(40, visual=16, text=text, gap=gap, copied=(k, 10 if k else 0))
        for k in counts
    }


def test_with_equal_scores_insertions_bring_what_theorem_says():
    groups = [insertions(0.0, text=t) for t in (8, 12, 20)]
    found = insertion(groups)
    assert found.exponent == pytest.approx(1)
    assert found.saturates_at is None
    table = found.table.set_index("insertion")
    assert table.index.tolist() == ["0", "8", "16", "32"]
    steps = np.arange(10, 40)
    for k in (0, 8, 16, 32):
        share = np.mean([((16 + k) / (16 + k + t + steps)).mean() for t in (8, 12, 20)])
        assert table.loc[str(k), "key_share"] == pytest.approx(share)
        assert table.loc[str(k), "mass"] == pytest.approx(share)
        assert table.loc[str(k), "counts"] == pytest.approx(np.log((16 + k) / 16))
        assert table.loc[str(k), "preference"] == pytest.approx(0, abs=1e-9)
        assert table.loc[str(k), "inserted"] == k
    assert (table["rising"].dropna() == 1).all()
    assert json.loads(json.dumps(found.as_dict()))["table"][0]["rising"] is None


def test_insertions_that_are_not_looked_at_saturate():
    """Copies of a low gap: the largest one is given a gap that takes all it brings."""
    lost = -np.log((16 + 32) / (16 + 16))
    groups = []
    for t in (8, 9, 10, 12, 16, 20, 25, 30):
        group = insertions(0.0, text=t, counts=(0, 8, 16))
        group["32"] = insertions(lost - 0.01 * t, text=t, counts=(32,))["32"]
        groups.append(group)
    found = insertion(groups)
    assert found.saturates_at == "16"
    last = found.table.iloc[-1]
    assert last["preference"] == pytest.approx(
        lost - 0.01 * np.mean([8, 9, 10, 12, 16, 20, 25, 30])
    )
    assert last["log_odds"] == pytest.approx(last["counts"] + last["preference"])


def test_a_forced_response_may_be_compared_step_by_step(tiny):
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    said = attnlens.run(tiny, prompt, 12, do_sample=False, min_new_tokens=12)
    copies = {
        "none": None,
        **{
            str(n): attnlens.interventions.Copy(
                when=attnlens.interventions.AtStep(5),
                positions="frozen-cache",
                wrap=False,
                repeat=n,
            )
            for n in (1, 3)
        },
    }
    twins = {name: attnlens.force(tiny, prompt, said, chosen) for name, chosen in copies.items()}
    assert all(twin.tokens == said.tokens for twin in twins.values())
    assert np.allclose(twins["none"].data["mass"], said.data["mass"], atol=1e-5)
    found = insertion([twins, twins], layers=0).table.set_index("insertion")
    # in the first layer repeated keys have the scores of those they repeat: counts alone
    for n in (1, 3):
        assert found.loc[str(n), "preference"] == pytest.approx(0, abs=1e-5)
        assert found.loc[str(n), "log_odds"] == pytest.approx(np.log(1 + n), abs=1e-5)
    with pytest.raises(InputError, match="other tokens than the first"):
        insertion([{"none": twins["none"], "1": said.data.isel(step=slice(0, 9))}])
    with pytest.raises(InputError, match="no inserted"):
        insertion([{"none": twins["none"], "1": said}])
    with pytest.raises(InputError, match="at least one group"):
        insertion([])
    with pytest.raises(InputError, match="group 1 has traces called none, 3"):
        insertion([{"none": said, "1": twins["1"]}, {"none": said, "3": twins["3"]}])


def test_no_change_is_not_shared_out():
    gaps = np.linspace(0.0, 1.0, 20)
    runs = [synthetic_attention(20, text=2000, gap=s * gaps) for s in 4 * (1, -1)]
    each = [difference(run, ((0, 2), (18, 20))) for run in runs]
    found = change(xr.concat(each, "sample"))
    assert np.isnan(found.dilution_share)
    assert "no change" in found.words()
    few = change(xr.concat(each[:4], "sample"))
    assert np.isnan(few.dilution_share)
    assert "too few runs, which go different ways" in few.words()
    assert json.loads(json.dumps(found.as_dict()))["dilution_share"] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: dilution([]), "empty list"),
        (lambda run: dilution([run.isel(step=[0, 1])]), "2 steps"),
        (lambda run: dilution([run, run.isel(layer=[0])]), "differ in their layers"),
        (lambda run: dilution([run, run], between=[((0, 5), (5, 9))]), "1 pairs of windows"),
        (lambda run: dilution([run], between=[((0, 5), (5, 9))] * 2), "More pairs of windows"),
        (lambda run: dilution([run], between=["think", "back"]), "two windows, such as"),
        (lambda run: dilution([run], between=((0.0, 10.0), (0.5, 1.0))), "no part of a run"),
        (lambda run: dilution([run], between=((0, 5), (90, 99))), r"\(90, 99\) holds no step"),
        (lambda run: dilution([run], layers=[7]), r"Layers \[7\]"),
        (lambda run: dilution([run], confidence=1.5), r"1\.5"),
        (lambda run: dilution([run.assign(keys=run["keys"] * 0)]), "no visual keys"),
        (lambda run: dilution(["run.zarr"]), "not a trace"),
        (lambda run: synthetic_attention(0), "0 steps"),
        (lambda run: synthetic_attention(5, gap=[1.0, 2.0]), r"\(2,\) for 5 steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, message):
    run = synthetic_attention(20)
    with pytest.raises(InputError, match=message):
        make(run)


def saved(folder, count=3):
    for i in range(count):
        run = synthetic_attention(30, visual=20 + i, text=8, gap=0.2 * i)
        words = ["<think>", *["a"] * 13, "</think>", "<back>", *["b"] * 13, "</back>"]
        run = run.assign_coords(predicted_token=("step", np.array(words)))
        run["predicted_token_id"] = ("step", np.arange(30))
        attnlens.Trace(run).save(folder / f"{i:05d}_scene" / "back_trace.zarr")


@pytest.mark.slow
def test_the_command_reads_traces_and_writes_every_number(tmp_path, capsys):
    saved(tmp_path / "traces")
    command = ["dilution", "--traces", str(tmp_path / "traces"), "--save-folder", str(tmp_path)]
    assert main([*command, "--between", "0-10", "75%-100%", "--format", "pdf"]) == 0
    folder = tmp_path / "dilution"
    names = {"dilution.json", "by_layer.csv", "by_head.csv", "curves.csv", "dilution.pdf"}
    names |= {"dilution.parquet", "steps.parquet"}
    assert {p.name for p in folder.iterdir()} == names
    record = json.loads((folder / "dilution.json").read_text())
    assert record["samples"] == 3
    assert record["traces"][0] == "00000_scene/back_trace.zarr"
    assert record["between"] == ["steps 0-9", "75-100% of the run"]
    curves = pd.read_csv(folder / "curves.csv")
    assert len(curves) == 90
    assert np.allclose(curves["log_odds"], curves["counts"] + curves["preference"])
    assert "of the fall is key counts" in capsys.readouterr().out
    assert main([*command, "--between", "think", "back"]) == 0
    assert json.loads((folder / "dilution.json").read_text())["between"] == ["think", "back"]
    # a run that was cut off is said and left out
    short = synthetic_attention(30).assign(predicted_token_id=("step", np.arange(30)))
    attnlens.Trace(short).save(tmp_path / "traces" / "cut.zarr")
    capsys.readouterr()
    assert main([*command, "--between", "think", "back"]) == 0
    record = json.loads((folder / "dilution.json").read_text())
    assert record["samples"] == len(record["traces"]) == 3
    assert "skipped" in capsys.readouterr().err
    one = ["dilution", "--traces", str(tmp_path / "traces" / "cut.zarr"), *command[3:]]
    assert main(one) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--traces", "{folder}/nothing"], "is no folder"),
        (["--traces", "{folder}/empty"], "holds no trace"),
        (["--between", "60%-40%", "back"], "60%-40%"),
        (["--between", "think", "glimpse"], "'glimpse'"),
        (["--layers", "9"], r"Layers \[9\]"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(more, message, tmp_path, capsys):
    saved(tmp_path / "traces", 2)
    (tmp_path / "empty").mkdir()
    out = ["--save_folder", str(tmp_path / "out")]
    command = ["dilution", "--traces", str(tmp_path / "traces"), *out]
    assert main([*command, *(m.format(folder=tmp_path) for m in more)]) == 2
    *skipped, error = capsys.readouterr().err.splitlines()
    assert re.search(message, error)
    assert all("skipped" in line for line in skipped)
    assert not (tmp_path / "out" / "dilution").exists()


def test_the_figure_shows_every_run(tmp_path):
    runs = [synthetic_attention(30, visual=20 + i, gap=0.1 * i) for i in range(8)]
    for width in ("one-column", "two-column"):
        figure = plots.dilution(dilution(runs), width=width)
        left, right = figure.axes
        assert sum(line.get_lw() < 0.6 for line in left.lines) == 8
        assert [t.get_text() for t in right.get_yticklabels()] == [
            "preference",
            "key counts",
            "log-odds",
        ]
        plots.save(figure, tmp_path / "a.svg")
    small = synthetic_attention(30, visual=2, text=3000, gap=-4.0)
    low = plots.dilution(dilution([small, small])).axes[0]
    assert min(*low.get_xlim(), *low.get_ylim()) > 0
    assert all(tick > 0 for tick in [*low.get_xticks(), *low.get_yticks()])
    assert "80% interval" in _caption(plots.dilution(dilution(runs, confidence=0.8)))
    dark = small.assign(mass=small["mass"].where(small["segment"] != "visual", 0.0))
    with pytest.raises(InputError, match="no step has mass"):
        plots.dilution(dilution([dark]))
    lone = plots.dilution(dilution(runs[:1]))  # no interval, and no warning
    plots.save(lone, tmp_path / "b.pdf")


def _caption(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_insertions_of_one_prompt_say_nothing_of_saturation():
    found = insertion([insertions(0.0)])
    assert found.saturates_at is None
    assert "nan" not in found.verdict()[0]
    assert "more tokens" not in found.verdict()[0]


def test_a_plateau_before_a_rise_is_no_saturation():
    groups = []
    for text in range(8, 14):
        group = insertions(0.0, text=text, counts=(0, 8, 16))
        group["32"] = insertions(6.0, text=text, counts=(32,))["32"]
        flat = insertions(-6.0, text=text, counts=(16,))["16"]
        groups.append({"0": group["0"], "8": group["8"], "16": flat, "32": group["32"]})
    assert insertion(groups).saturates_at is None
