"""``attnlens dilution`` on a model at hand: twins, sampled answers, tables, figures."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unpainted_figures
from helpers_processes import killed_process

import attnlens
from attnlens import measures, plots
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.testbed import held_out_sample

COUNT = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(COUNT):
        sample = held_out_sample(3, i, "cot")
        sample.scene.draw().save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": sample.question.text}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder / "questions.jsonl"


def command(data, out, samples=2):
    files = ["--data", str(data), "--save_folder", str(out)]
    more = ["--insertion", "--samples", str(samples), "--max_new_tokens", "16"]
    return ["dilution", *files, *more]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Results of the whole command, and what it said on standard error."""
    out = tmp_path_factory.mktemp("out")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(command(data, out)) == 0
    return out, said.getvalue()


@pytest.fixture(scope="module")
def folder(whole):
    return whole[0]


@pytest.fixture
def unpainted():
    """Give figures no content: those of the whole command have theirs, and others are alike."""
    with unpainted_figures():
        yield


def states(folder, pattern="**/*"):
    """When each file was written, and its inode: both change with a new file."""
    files = [p for p in sorted(folder.glob(pattern)) if p.is_file()]
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def copied(folder, out, *parts):
    """Copy results, times of change included, without these parts of the runs and what follows."""
    shutil.copytree(folder, out)
    for part in ("dilution", *(f"dilution_runs/{part}" for part in parts)):
        shutil.rmtree(out / part)
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(
    ("missing", "lines", "place"),
    [
        (["cot_twins", "cot_answers"], 1, "cot_twins"),
        (["cot_answers"], 1, "cot_answers"),
        (["cot_answers"], COUNT, "tables"),
    ],
    ids=["among insertions", "among sampled answers", "before the tables"],
)
def test_killed_in_each_part_and_resumed(missing, lines, place, data, folder, tmp_path, capsys):
    out = copied(folder, tmp_path / "out", *missing)
    done = states(out)
    with killed_process(main, command(data, out)) as printed:
        said = [printed.readline() for _ in range(lines)]
    if place != "tables":
        assert place in said[-1]
    for line in said:
        path = Path(line.removeprefix("written to ").strip())
        assert path.parent.name == missing[0]
        assert states(path)
        done |= states(path)
    assert not (out / "dilution").exists()

    assert main(command(data, out)) == 0
    capsys.readouterr()
    after = states(out)
    assert {path: after[path] for path in done} == done
    assert not [p for p in out.rglob(".*-*")]
    for name in ("dilution.parquet", "steps.parquet"):
        whole = (folder / "dilution" / name).read_bytes()
        assert (out / "dilution" / name).read_bytes() == whole


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_more_answers_are_sampled_beside_those_that_are_there(data, folder, tmp_path, monkeypatch):
    from attnlens.runs import dilution as dilution_runs

    asked = []
    sample = dilution_runs.sampled_dependence

    def counted(vlm, prompt, samples, others, **options):
        asked.append((samples, options["seed"]))
        return sample(vlm, prompt, samples, others, **options)

    monkeypatch.setattr(dilution_runs, "sampled_dependence", counted)
    out = copied(folder, tmp_path / "out", "cot_answers")
    assert main(command(data, out, samples=1)) == 0
    assert main(command(data, out)) == 0
    assert asked == [(1, 0)] * COUNT + [(1, 1)] * COUNT
    whole = (folder / "dilution" / "dilution.parquet").read_bytes()
    assert (out / "dilution" / "dilution.parquet").read_bytes() == whole
    answers = states(out, "dilution_runs/cot_answers/**/*")
    assert main(command(data, out, samples=1)) == 0  # two serve for one
    assert states(out, "dilution_runs/cot_answers/**/*") == answers
    record = json.loads((out / "dilution" / "dilution.json").read_text())
    assert record["information"]["answers"] == COUNT
    assert len(asked) == 2 * COUNT


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_each_question_that_failed_in_some_part_is_counted_once(
    data, folder, tmp_path, monkeypatch, capsys
):
    from attnlens.runs import dilution as dilution_runs

    out = tmp_path / "out"
    shutil.copytree(folder, out)

    def fails(inner, at):
        calls = []

        def sometimes(*args, **options):
            calls.append(args)
            if len(calls) == at:
                raise RuntimeError("out of memory")
            return inner(*args, **options)

        return sometimes

    for name, part, at in (("twins", "cot_twins", 1), ("sampled_dependence", "cot_answers", 2)):
        shutil.rmtree(out / "dilution_runs" / part)
        monkeypatch.setattr(dilution_runs, name, fails(getattr(dilution_runs, name), at))
    assert main(command(data, out)) == 1
    said = capsys.readouterr().err
    assert "dilution (insertions): line 1 failed: out of memory" in said
    assert "dilution (sampled answers): line 2 failed: out of memory" in said
    assert "not in the results: 2 questions failed" in said


def test_answers_that_had_not_ended_are_counted(whole):
    folder, said = whole
    length = "had not ended at the longest length, 16 tokens (--max_new_tokens)"
    assert f"{COUNT} of {COUNT} answers {length}" in said
    record = json.loads((folder / "dilution" / "dilution.json").read_text())
    assert len(record["cut_off"]) == COUNT
    assert pd.read_parquet(folder / "dilution" / "steps.parquet")["cut_off"].all()


def test_every_number_is_in_the_table(folder):
    record = json.loads((folder / "dilution" / "dilution.json").read_text())
    table = pd.read_parquet(folder / "dilution" / "dilution.parquet")

    def value(measure, quantity, statistic="mean", **where):
        rows = table[(table["measure"] == measure) & (table["quantity"] == quantity)]
        rows = rows[rows["statistic"] == statistic]
        for name, wanted in where.items():
            rows = rows[rows[name] == wanted]
        assert len(rows) == 1
        return rows["value"].item()

    def known(number):
        return pytest.approx(np.nan if number is None else number, nan_ok=True)

    assert value("dilution", "exponent") == pytest.approx(record["exponent"])
    assert record["change"]["counts"]["low"] is None  # so few runs have no interval
    assert np.isnan(value("change", "counts", "low"))
    sinkless = record["change_without_sink"]["preference"]["mean"]
    assert value("change_without_sink", "preference") == pytest.approx(sinkless)
    evenness = record["evenness"]["response"]["high"]
    assert value("evenness", "mass_over_key_share", "high", segment="response") == known(evenness)
    row = record["by_layer"][1]
    where = {"layer": row["layer"]}
    assert value("by_layer", "exponent", "high", **where) == known(row["exponent_high"])
    assert value("by_layer", "evenness_visual", **where) == pytest.approx(row["evenness_visual"])
    assert value("dilution", "samples", "value") == COUNT
    row = record["by_head"][5]
    where = {"layer": row["layer"], "head": row["head"]}
    assert value("by_head", "exponent", "low", **where) == known(row["exponent_low"])
    copy = next(r for r in record["insertion"]["table"] if r["insertion"] == "COPY")
    assert value("insertion", "preference", "high", insertion="COPY") == known(
        copy["preference_high"]
    )
    assert value("information", "at_least") == known(record["information"]["at_least"])
    part = record["information"]["curve"][3]
    where = {"position": part["start"]}
    assert value("information", "nats_per_step", "low", **where) == known(part["low"])
    curves = pd.read_csv(folder / "dilution" / "curves.csv")
    mass = table[(table["measure"] == "by_step") & (table["quantity"] == "mass")]
    np.testing.assert_allclose(mass["value"], curves["mass"])
    np.testing.assert_array_equal(mass["sample"].astype(int), curves["sample"])
    assert len(pd.read_parquet(folder / "dilution" / "steps.parquet")) == len(curves)
    assert {p.stem for p in (folder / "dilution").glob("*.png")} == {
        "dilution",
        "insertion",
        "information",
    }


def test_twins_say_what_the_run_said_with_more_visual_keys(folder):
    runs = folder / "dilution_runs"
    (said,) = runs.glob("cot/00001_*/trace.zarr")
    said = attnlens.Trace.load(said).data
    visual = int(said["keys"].sel(segment="visual")[0])
    (twins,) = runs.glob("cot_twins/00001_*")
    expected = {"nothing": 0, "COPY": visual, "COPY twice": 2 * visual, "COPY 4 times": 4 * visual}
    expected["ROUTE 50%"] = visual // 2
    for name, count in expected.items():
        twin = attnlens.Trace.load(twins / f"{name}.zarr").data
        assert twin["predicted_token"].equals(said["predicted_token"])
        copied = twin["keys"].sel(segment="copied").values
        middle = len(copied) // 2
        assert (copied[:middle] == 0).all()
        assert (copied[middle:] == count).all()


def test_answers_are_sampled_and_measured_against_the_other_images(folder):
    paths = sorted((folder / "dilution_runs" / "cot_answers").glob("00002_*/*.zarr"))
    assert [p.stem for p in paths] == ["0", "1"]
    from attnlens.experiments.dependence import load_dependence

    found = [load_dependence(path) for path in paths]
    for one in found:
        assert one["reference"].values.tolist() == ["removed", "other 1", "other 2"]
    again = measures.mutual_information([found], reference="removed")
    totals = [float(one["log_ratio"].sel(reference="removed").sum()) for one in found]
    assert again.nats == pytest.approx(np.mean(totals))


@pytest.mark.usefixtures("unpainted")
def test_traces_alone_give_the_theorem_and_the_table(folder, tmp_path, capsys):
    of_traces = ["dilution", "--traces", str(folder / "dilution_runs"), "--save_folder"]
    assert main([*of_traces, str(tmp_path)]) == 0  # twins among them are runs, too
    assert "to the power of" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "dilution" / "dilution.parquet")
    assert not table["measure"].isin(["insertion", "information"]).any()
    steps = pd.read_parquet(tmp_path / "dilution" / "steps.parquet")
    assert steps["line"].isna().all()
    assert steps["question"].str.len().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --traces DIR or --data"),
        (["--traces", "x", "--data", "y"], "either --traces DIR or --data"),
        (["--traces", "x", "--samples", "2"], "--insertion and --samples need a model"),
        (["--traces", "x", "--insertion"], "--insertion and --samples need a model"),
        (["--data", "y", "--samples", "-1"], "--samples -1"),
        (["--data", "y", "--max_new_tokens", "2"], "--max_new_tokens 2"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_bad_options_are_refused(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["dilution", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def measured(folder):
    """Return what the insertions and the sampled answers give."""
    from attnlens.experiments.dependence import load_dependence

    twins = sorted((folder / "dilution_runs" / "cot_twins").glob("*"))
    names = ("nothing", "ROUTE 50%", "COPY", "COPY twice")
    groups = [{n: attnlens.Trace.load(f / f"{n}.zarr") for n in names} for f in twins]
    answers = sorted((folder / "dilution_runs" / "cot_answers").glob("*"))
    shared = measures.mutual_information(
        [[load_dependence(path) for path in sorted(f.glob("*.zarr"))] for f in answers], bins=4
    )
    return measures.insertion(groups), shared


@pytest.mark.parametrize("width", ["one-column", "two-column"])
def test_figures_draw_what_was_measured(measured, width):
    found, shared = measured
    figure = plots.insertion(found, width=width)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), found.table["key_share"])
    np.testing.assert_allclose(line.get_ydata(), found.table["mass"])
    counts = figure.axes[1].lines[0].get_xdata()
    np.testing.assert_allclose(counts, found.table["counts"][1:])
    assert plots.figure.render(figure, "png") == plots.figure.render(figure, "png")

    axes = plots.information(shared, width=width).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), shared.curve["nats_per_step"])
    scaled = next(line for line in axes.lines if line.get_label().startswith("r × H"))
    assert scaled.get_ydata().sum() == pytest.approx(shared.curve["nats_per_step"].sum())


def test_an_insertion_of_nothing_is_no_figure(folder):
    twins = sorted((folder / "dilution_runs" / "cot_twins").glob("*"))
    groups = [{n: attnlens.Trace.load(f / f"{n}.zarr") for n in ("nothing", "COPY")} for f in twins]
    found = measures.insertion(groups)
    found.table["inserted"] = 0.0
    with pytest.raises(InputError, match="nothing to draw"):
        plots.insertion(found)
