"""All figures from runs of the testbed, and the averages over runs that one of them draws."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers_traces import FakeRegion, FakeTrace, planted_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens import measures, plots
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.measures.statistics import mean_interval
from attnlens.reports.figure_list import NAMES
from attnlens.testbed import held_out_sample, token_truth

pytestmark = pytest.mark.slow

SEED = 4
SCENES = 3
KINDS = ("pdf", "png", "csv", "txt")


def run_of(values, *regions):
    """Make a trace of planted visual mass, with regions (name, start, stop)."""
    spans = [FakeRegion(*region) for region in regions]
    return FakeTrace(planted_dataset(values, regions=spans), spans)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run the command once: a folder of runs and one of figures."""
    folder = tmp_path_factory.mktemp("figures")
    runs, out = folder / "runs", folder / "out"
    options = ["--scenes", SCENES, "--seed", SEED, "--keep-runs", runs, "--out", out]
    assert main(["figures", *map(str, options)]) == 0
    return runs, out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_figure_has_its_pictures_caption_and_data(made):
    _, out = made
    files = contents(out)
    assert {f"{name}.{kind}" for name in NAMES for kind in KINDS} <= set(files)
    for name in NAMES:
        assert files[f"{name}.pdf"].startswith(b"%PDF")
        assert files[f"{name}.png"].startswith(b"\x89PNG")
        caption = files[f"{name}.txt"].decode()
        assert "Model: testbed." in caption
        assert f"attnlens {attnlens.__version__}" in caption
        assert "torch " in caption
        assert "transformers " in caption
        assert str(out.parent) not in caption
        table = pd.read_csv(io.BytesIO(files[f"{name}.csv"]))
        assert len(table)
        assert not [column for column in table if "seconds" in column]
    assert f"{SCENES} runs of mode cot, {SCENES} runs of mode back" in (
        files["01_decay_and_refocus.txt"].decode()
    )


def test_a_second_drawing_of_the_same_runs_gives_the_same_bytes(made, tmp_path, capsys):
    runs, out = made
    assert main(["figures", "--traces", str(runs), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().err == ""
    again, first = contents(tmp_path / "again"), contents(out)
    assert set(again) == set(first)
    assert [name for name in first if again[name] != first[name]] == []


def test_overlays_outline_the_object_that_the_shown_fact_is_about(made):
    runs, out = made
    for number, name in enumerate(("04a_overlay", "04b_overlay", "04c_overlay")):
        trace = attnlens.Trace.load(runs / "back" / f"{number:04d}.zarr")
        truth = token_truth(held_out_sample(SEED, number, "back"), trace.tokens)
        facts = [
            step
            for step, token in enumerate(truth)
            if token.must_look and token.section == "verification"
        ]
        step = facts[len(facts) // 2]
        table = pd.read_csv(out / f"{name}.csv")
        assert np.flatnonzero(table["outlined"]).tolist() == list(truth[step].visual_tokens)
        shown = [trace.data["visual_map"].sel(step=step, layer=layer).values for layer in range(4)]
        layers = [layer for layer in range(4) if np.allclose(table["mass"], shown[layer], 1e-4)]
        assert len(layers) == 1
        assert f"layer {layers[0]};" in (out / f"{name}.txt").read_text(encoding="utf-8")


def test_data_of_the_routes_and_of_one_run_are_those_of_the_results(made):
    from attnlens.experiments.recovery import Recovery

    runs, out = made
    routes = pd.read_csv(out / "06_routes.csv")
    own = routes[~routes["inserted_counted"]].set_index("percent")
    assert own.index.tolist() == [12.5, 25, 50, 75, 100]
    rises = Recovery.load(runs / "routes.zarr").per_sample("mass").groupby("run")["rise"].mean()
    for percent, rise in own["rise"].items():
        assert rise == pytest.approx(rises[f"ROUTE {percent:g}%"], rel=1e-4)
    trace = attnlens.Trace.load(runs / "back" / "0000.zarr")
    curves = pd.read_csv(out / "02_one_run.csv")
    image = curves[curves["curve"] == "image"]["share"]
    np.testing.assert_allclose(image, measures.visual_share(trace, "look-back"), rtol=1e-4)


def test_data_of_the_theorems_are_those_of_their_runs(made, tmp_path):
    from attnlens.experiments.dependence import load_dependence

    runs, out = made
    long = [attnlens.Trace.load(path).data for path in sorted((runs / "long").iterdir())]
    steps = pd.read_csv(out / "10_long_answers_steps.csv")
    assert steps.groupby("sample").size().tolist() == [one.sizes["step"] for one in long]
    assert steps.groupby("sample").size().min() >= 1000
    for number, one in enumerate(long):
        keys = one["keys"]
        share = keys.sel(segment="visual") / keys.sum("segment")
        assert float(share[0] / share[-1]) > 5
        mine = steps[steps["sample"] == number]
        np.testing.assert_allclose(mine["key_share"], share, rtol=1e-4)
        mass = one["mass"].sel(segment="visual").mean(("layer", "head"))
        np.testing.assert_allclose(mine["mass"], mass, rtol=1e-4)
    inserted = pd.read_csv(out / "11_insertion.csv").set_index("insertion")["inserted"]
    visual = [
        int(attnlens.Trace.load(p).data["keys"][0].sel(segment="visual"))
        for p in sorted((runs / "cot").glob("*.zarr"))
    ]
    assert inserted["COPY twice"] == pytest.approx(2 * np.mean(visual), rel=1e-5)
    curve = pd.read_csv(out / "12_information.csv")
    answers = sorted((runs / "cot_answers").glob("*/*.zarr"))
    assert len(answers) == 2 * SCENES
    first = load_dependence(answers[0])
    others = [name for name in first["reference"].values if str(name).startswith("other ")]
    assert len(others) == SCENES - 1
    assert curve["key_share"].is_monotonic_decreasing

    # what attnlens dilution leaves behind is drawn, too
    shutil.copytree(runs / "cot_twins", tmp_path / "cot_twins")
    assert main(["figures", "--traces", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    again = (tmp_path / "out" / "11_insertion.csv").read_bytes()
    assert again == (out / "11_insertion.csv").read_bytes()
    (tmp_path / "cot_twins" / "0000" / "nothing.zarr").rename(tmp_path / "elsewhere")
    assert main(["figures", "--traces", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


def test_traces_alone_give_what_can_be_drawn_and_say_what_is_left_out(made, tmp_path, capsys):
    runs, _ = made
    folder, figures = tmp_path / "mine", tmp_path / "out"
    for number in range(2):
        shutil.copytree(runs / "back" / f"{number:04d}.zarr", folder / f"run{number}.zarr")
    touched = attnlens.Trace.load(folder / "run0.zarr")
    touched.attrs["interventions"] = [{"kind": "copy"}]
    touched.save(folder / "touched.zarr")
    figures.mkdir()
    for name in ("05_recovery.png", "05_recovery_steps.csv", "notes.csv"):
        (figures / name).write_text("old")
    assert main(["figures", "--traces", str(folder), "--out", str(figures)]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line.split(" left out: ")[0] for line in lines] == [
        "attnlens figures: run touched.zarr",
        "attnlens figures: 04_overlays",  # the pictures were never files
        "attnlens figures: 05_recovery",
        "attnlens figures: 06_routes",
        "attnlens figures: 09_dependence",
        "attnlens figures: 10_long_answers",
        "attnlens figures: 11_insertion",
        "attnlens figures: 12_information",
    ]
    drawn = [n for n in NAMES if n[:2] in ("01", "02", "03", "07", "08")]
    assert {path.stem for path in figures.glob("*.png")} == set(drawn)
    assert "05_recovery_steps.csv" not in contents(figures)
    assert "notes.csv" in contents(figures)  # nothing of ours
    caption = (figures / "08_definitions.txt").read_text(encoding="utf-8")
    assert "2 runs of mode back" in caption
    assert "seconds" not in caption


def test_results_of_an_earlier_version_are_read(made, tmp_path):
    from attnlens.experiments.dependence import load_dependence
    from attnlens.experiments.recovery import Recovery
    from attnlens.reports.figure_inputs import read_runs

    runs, _ = made
    kept = {
        "recovery": Recovery.load(runs / "recovery.zarr").data,
        "routes": Recovery.load(runs / "routes.zarr").data,
        "dependence/0000": load_dependence(runs / "dependence" / "0000.zarr"),
        "cot_answers/0000/0": load_dependence(runs / "cot_answers" / "0000" / "0.zarr"),
    }
    for name, data in kept.items():
        path = tmp_path / f"{name}.nc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(data.to_netcdf(engine="scipy")))
    found = read_runs(tmp_path)
    assert found.recovery.data.identical(kept["recovery"])
    assert found.routes.data.identical(kept["routes"])
    assert found.dependence[0].identical(kept["dependence/0000"])
    assert found.answers[0][0].identical(kept["cot_answers/0000/0"])


def test_without_the_truth_overlays_show_the_step_with_most_mass(made, tmp_path):
    from attnlens.reports.figure_inputs import read_runs
    from attnlens.reports.figure_overlays import choose

    runs, _ = made
    shutil.copytree(runs / "back" / "0000.zarr", tmp_path / "0000.zarr")
    shutil.copy(runs / "back" / "0000.png", tmp_path)
    (look,) = choose(read_runs(tmp_path).modes["back"], "back")
    trace = attnlens.Trace.load(runs / "back" / "0000.zarr")
    inside = trace.data["region"].values == "back"
    mass = trace.data["visual_map"].mean("layer").sum("visual").values
    assert look.step == np.where(inside, mass, 0).argmax()
    assert look.layer is None
    assert not look.table()["outlined"].any()
    assert [p for p in look.draw(3.35).axes[0].patches if p.get_gid() == "box"] == []


@pytest.mark.parametrize("text", ["{", '{"tokens": [{"text": 1}]}'])
def test_a_broken_truth_is_refused(made, tmp_path, text):
    from attnlens.reports.figure_inputs import read_runs
    from attnlens.reports.figure_overlays import choose

    runs, _ = made
    shutil.copytree(runs / "back" / "0000.zarr", tmp_path / "0000.zarr")
    (tmp_path / "0000.json").write_text(text)
    with pytest.raises(InputError, match=r"0000\.json"):
        choose(read_runs(tmp_path).modes["back"], "back")


def broken_runs(made, folder):
    """Make a folder for each way in which runs can be unusable."""
    runs, _ = made
    names = ("empty", "damaged", "mixed", "recovery")
    empty, damaged, mixed, recovery = (folder / name for name in names)
    empty.mkdir()
    shutil.copytree(runs / "cot" / "0000.zarr", damaged / "0000.zarr")
    next((damaged / "0000.zarr" / "mass").glob("0*")).write_bytes(b"no")
    shutil.copytree(runs / "cot" / "0000.zarr", mixed / "0000.zarr")
    other = attnlens.Trace.load(mixed / "0000.zarr")
    other.attrs["model"] = "another"
    other.save(mixed / "0001.zarr")
    recovery.mkdir()
    shutil.copytree(runs / "recovery.zarr", recovery / "recovery.zarr")
    next((recovery / "recovery.zarr" / "rise").glob("0*")).write_bytes(b"no")
    return {
        folder / "nowhere": "is no folder",
        empty: "holds no untouched run",
        damaged: "is damaged",
        mixed: "several models (another, testbed)",
        recovery: "the recovery",
    }


def test_bad_folders_are_refused_in_one_line(made, tmp_path, capsys):
    for folder, reason in broken_runs(made, tmp_path).items():
        out = tmp_path / "out"
        assert main(["figures", "--traces", str(folder), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert reason in error
        assert not out.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--scenes", "1"], "--scenes 1: give at least 2"),
        (["--seed", "-1"], "seed -1 of held-out scenes"),
        (["--traces", ".", "--scenes", "3"], "--scenes with --traces"),
        (["--traces", ".", "--keep-runs", "kept"], "--keep_runs with --traces"),
        (["--keep-runs", "full"], "exists already"),
        (["--out", "file"], "is not a folder"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, options, reason
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attnlens, "load", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    assert main(["figures", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_averages_of_hand_made_runs():
    one = run_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.3, 0.6, 0.9], ("back", 4, 6))
    two = run_of([0.3, 0.5, 0.2, 0.2, 0.4, 0.8], ("back", 2, 5))
    plain = run_of([0.2, 0.4, 0.6])
    found = measures.averages([one, two, plain], bins=2)
    many = measures.averages([one, two] * 4, bins=2).table.set_index(["section", "bin"])
    assert (found.samples, found.with_region) == (3, 2)
    assert found.lengths == {"before": 3, "inside": 2.5, "after": 2, "whole": 3}
    means = found.table.groupby("section")["mean"].apply(list)
    # a section of three steps: the middle one lies half in either bin
    inside = [0.2, (0.4 + 0.2 / 2) / 1.5]
    expected = {
        "before": [(0.15 + 0.3) / 2, (0.35 + 0.5) / 2],
        "inside": [(0.5 + inside[0]) / 2, (0.7 + inside[1]) / 2],
        "after": [((0.3 + 0.6 / 2) / 1.5 + 0.8) / 2, ((0.6 / 2 + 0.9) / 1.5 + 0.8) / 2],
        "whole": [(0.2 + 0.4 / 2) / 1.5, (0.4 / 2 + 0.6) / 1.5],
    }
    for section, values in expected.items():
        assert means[section] == pytest.approx(values, abs=1e-6), section
    rows = found.table.set_index(["section", "bin"])
    assert rows.loc[("after", 1), ["start", "stop", "runs"]].tolist() == [0.5, 1, 2]
    ends = mean_interval(np.array([0.15, 0.3] * 4), 0.95)
    assert many.loc[("before", 0), ["low", "high"]].tolist() == pytest.approx(ends, abs=1e-6)
    assert rows.loc[("before", 0), ["low", "high"]].isna().all()  # two runs have none
    assert np.isnan(rows.loc[("whole", 0), "low"])  # one run has no interval
    assert found.as_dict()["table"][-1]["low"] is None


def test_sections_reach_from_the_first_to_the_last_region_and_follow_the_owner_of_a_step():
    trace = run_of(np.linspace(0.1, 0.9, 12), ("back", 3, 5), ("think", 5, 6), ("back", 6, 8))
    assert measures.averages(trace).lengths == {"before": 3, "inside": 5, "after": 4}
    # step 0 is left out, and tokens stand one step later, where they are fed in
    found = measures.averages(trace, "look-back")
    assert found.lengths == {"before": 3, "inside": 5, "after": 3}
    cut = run_of([0.1, 0.2, 0.3], ("back", 0, 3))
    assert measures.averages(cut).lengths == {"inside": 3}
    none = measures.averages(trace, region="reflection")
    assert none.lengths == {"whole": 12}


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0.01, 0.9), min_size=1, max_size=30), bins=st.integers(1, 40))
def test_bins_hold_the_mean_of_the_section_whatever_their_number(values, bins):
    table = measures.averages(run_of(values), bins=bins).table
    assert len(table) == bins
    assert table["mean"].mean() == pytest.approx(np.mean(values), rel=1e-4)
    assert table["mean"].between(min(values) * 0.999, max(values) * 1.001).all()


@pytest.mark.parametrize("bins", [0, 1.5, True, 2000, {"inside": 0}, {"middle": 3}])
def test_averages_refuse_bad_bins(bins):
    with pytest.raises(InputError, match=r"bins is|no section"):
        measures.averages(run_of([0.1, 0.2]), bins=bins)


def test_averages_refuse_no_runs():
    with pytest.raises(InputError, match="empty list"):
        measures.averages([])


@pytest.mark.parametrize("width", ["one-column", "two-column"])
def test_the_plot_shades_the_region_at_mean_lengths(width):
    back = measures.averages(
        [run_of([0.3] * 4 + [0.6] * 4 + [0.2] * 2, ("back", 4, 8)), run_of([0.2] * 3)], bins=2
    )
    cot = measures.averages([run_of([0.3, 0.2, 0.1, 0.1, 0.1, 0.1])], bins=3)
    figure = plots.averages({"cot": cot, "back": back}, width=width)
    (axes,) = figure.axes
    (shade,) = [patch for patch in axes.patches if patch.get_gid() == "region"]
    assert shade.get_x() == 4
    assert shade.get_width() == 4
    lines = [line.get_xdata().tolist() for line in axes.lines]
    assert lines == [[1, 3, 5], [1, 3], [5, 7], [8.5, 9.5]]
    (caption,) = [text.get_text() for text in figure.texts if text.get_gid() == "caption"]
    said = " ".join(caption.split())
    assert "cot: 1 run; back: 1 run (1 without <back> left out)" in said
    assert "mass = " in said
    texts = [text.get_window_extent() for text in (*axes.texts, axes.xaxis.label)]
    texts += [text.get_window_extent() for text in figure.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(texts) for other in texts[i + 1 :])


def test_the_plot_refuses_what_does_not_go_together():
    mass = measures.averages(run_of([0.1, 0.2]))
    share = measures.averages(run_of([0.1, 0.2]), "look-back")
    with pytest.raises(InputError, match="one definition"):
        plots.averages({"one": mass, "other": share})
    with pytest.raises(InputError, match="at least one"):
        plots.averages({})
