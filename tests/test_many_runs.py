"""Many questions of a file: kept one by one, resumed after a kill, put into one table."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from conftest import unpainted_figures
from helpers_processes import killed_process

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.recovery import Recovery
from attnlens.files import clear_leftover_files, clear_leftover_folders
from attnlens.interventions import AtStep, Copy, Route
from attnlens.reports import table as tables_module
from attnlens.reports.table import steps_table, write_parquet, write_parts
from attnlens.runs.cache import SETTINGS, only_process
from attnlens.runs.dataset import Question, check_questions, read_questions
from attnlens.runs.provenance import differences, model_provenance
from attnlens.runs.recordings import find_runs
from attnlens.testbed import held_out_sample

COUNT = 3
SHORT = ("--max_new_tokens", "8", "--when", "step:3")


@pytest.fixture(scope="module", autouse=True)
def unpainted():
    """Give figures no content, which takes most of the time and no test looks at here."""
    with unpainted_figures():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a file of questions with a bad line among them."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(COUNT):
        sample = held_out_sample(3, i, "back")
        sample.scene.draw().save(folder / f"{i}.png")
        question = {"image": f"{i}.png", "question": sample.question.text}
        lines.append(json.dumps({**question, "answer": sample.question.answer}))
    lines.insert(1, '{"image": "0.png"')
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder / "questions.jsonl"


def command(name, data, out, *more):
    options = {
        "trend": ["--max_new_tokens", "16"],
        "recover": ["--max_new_tokens", "16", "--when", "step:6", "--intervention", "copy"],
        "dilution": ["--max_new_tokens", "16", "--between", "0%-50%", "50%-100%"],
    }[name]
    return [name, "--data", str(data), "--save_folder", str(out), *options, *map(str, more)]


def states(folder, pattern):
    """When each file that matches was written, and its inode: both change with a new file."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.glob(pattern))}


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """Results of each command, unbroken."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("trend", "recover", "dilution")}
    for name, folder in folders.items():
        assert main(command(name, data, folder)) == 1
    return folders


@pytest.fixture
def copied(done, tmp_path):
    """Return a copy of a command's results, times of change included."""

    def copy(name):
        shutil.copytree(done[name], tmp_path / "out")
        return tmp_path / "out"

    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runs", "tables"),
    [
        ("trend", "trend_runs/back/0*/trace.zarr", ["back_steps.parquet"]),
        ("recover", "batch_recovery_runs/back/*/settings.json", ["batch_recovery/steps.parquet"]),
        (
            "dilution",
            "dilution_runs/cot/0*/trace.zarr",
            ["dilution/steps.parquet", "dilution/dilution.parquet"],
        ),
    ],
)
def test_killed_and_resumed(name, runs, tables, data, done, tmp_path, capsys):
    """Nothing is lost, nothing is done twice, and the result is that of an unbroken run."""
    out = tmp_path / "broken"
    with killed_process(main, command(name, data, out)) as printed:
        first = printed.readline()  # said when the first question is done
    assert first.startswith("written to")
    before = states(out, runs)
    assert 1 <= len(before) < COUNT
    assert not any((out / table).exists() for table in tables)

    assert main(command(name, data, out)) == 1  # a line was skipped
    said = capsys.readouterr()
    assert "line 2: is not valid JSON" in said.err
    assert f"{len(before)} of {COUNT} questions were done before" in said.err
    after = states(out, runs)
    assert len(after) == COUNT
    assert {path: after[path] for path in before} == before
    assert not [p for p in out.rglob(".*-*")]

    for table in tables:
        columns = pd.read_parquet(out / table)
        assert set(columns.get("line", pd.Series([1, 3, 4]))) == {1, 3, 4}
        assert (out / table).read_bytes() == (done[name] / table).read_bytes()

    assert main(command(name, data, out)) == 1  # and once more: nothing is left to do
    assert states(out, runs) == after


@pytest.mark.slow
def test_other_settings_or_another_picture_are_done_again(data, copied):
    tmp_path = copied("trend")
    runs = "trend_runs/back/0*/trace.zarr"
    before = states(tmp_path, runs)
    assert main(command("trend", data, tmp_path, "--seed", 1)) == 1
    after = states(tmp_path, runs)
    assert not set(before.values()) & set(after.values())

    picture = data.with_name("1.png")
    kept = picture.read_bytes()
    try:
        held_out_sample(4, 0, "back").scene.draw().save(picture)
        assert main(command("trend", data, tmp_path, "--seed", 1)) == 1
    finally:
        picture.write_bytes(kept)
    again = states(tmp_path, runs)
    changed = [path.parent.name for path in after if after[path] != again[path]]
    assert changed == ["00003_1"]


def test_other_pictures_are_drawn_from_the_answers_that_are_there(data, copied, monkeypatch):
    from attnlens.runs import recordings

    tmp_path = copied("trend")
    masses = {
        path: attnlens.Trace.load(path).data["mass"].values
        for path in tmp_path.glob("trend_runs/back/0*/trace.zarr")
    }
    monkeypatch.setattr(recordings, "record_one", lambda *_: pytest.fail("generated again"))
    assert main(command("trend", data, tmp_path, "--format", "svg", "--definition", "mass")) == 1
    for path, mass in masses.items():
        shown = tmp_path / "trend" / "back" / path.parent.name
        assert (shown / "back_step_attention.svg").is_file()
        assert json.loads((shown / "summary.json").read_text())["definition"] == "mass"
        np.testing.assert_array_equal(attnlens.Trace.load(path).data["mass"].values, mass)


@pytest.mark.parametrize("name", ["trend", "recover"])
def test_answers_to_other_questions_are_not_written_over(name, data, copied, capsys):
    tmp_path = copied(name)
    lines = data.read_text().splitlines()
    asked = json.loads(lines[0]) | {"question": "Is there a red circle?"}
    other = data.with_name("other.jsonl")
    other.write_text("\n".join([json.dumps(asked), *lines[2:]]))
    everything = states(tmp_path, "**/*")
    capsys.readouterr()
    assert main(command(name, other, tmp_path)) == 2
    assert "holds the answer to another question" in capsys.readouterr().err
    assert states(tmp_path, "**/*") == everything


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "+boost:1"])
def test_a_changed_control_picture_is_run_again(more, data, tmp_path):
    control = tmp_path / "control.png"
    two = data.with_name("two.jsonl")
    two.write_text("\n".join(line for line in data.read_text().splitlines()[2:]))
    runs = "out/batch_recovery_runs/back/*/settings.json"
    seen = []
    for i in (8, 9, 9):
        held_out_sample(4, i, "back").scene.draw().save(control)
        options = ("--intervention", f"copy:{control}{more}", *SHORT)
        assert main(command("recover", two, tmp_path / "out", *options)) == 0
        seen.append(states(tmp_path, runs))
    assert len(seen[0]) == 2
    assert not set(seen[0].values()) & set(seen[1].values())
    assert seen[1] == seen[2]


def test_only_runs_of_their_own_are_found(tmp_path):
    wanted = {
        "a.zarr",
        "00001_x/back_trace.zarr",
        "deep/er/b.zarr",
        "00001_siamese_twins/cot_trace.zarr",  # named after its picture
        "long/back_trace.zarr",
        "cot_twins/cot_trace.zarr",
        "my_answers/a.zarr",
    }
    others = {
        ".00001_x-abcd1234/back_trace.zarr",
        "cot_twins/00001_x/COPY.zarr",
        "runs/cot_twins/1/nothing.zarr",
        "replay_runs/messages_interventions/copy/00001_x/trace.zarr",
        "long/0000.zarr",
        "x/.tmp.zarr",
    }
    for name in wanted | others:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file.zarr").write_text("")
    found = {str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)}
    assert found == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": "0.png", "question": "caf\xe9"}', "is not UTF-8 (byte 36 of it)"),
        (b'{"image": "", "question": "What?"}', "'image' is '': give a text"),
        (b'{"image": "0.png", "question": 3}', "'question' is 3: give a text"),
        (b'{"image": "0.png", "Question": "What?"}', "no 'question'; it has 'image', 'Question'"),
        (b'{"image": "0.png", "question": "?", "answer": [3]}', "'answer' is [3]: give a text"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_takes_no_other_with_it(line, message, data, capsys):
    path = data.with_name("bad.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + data.read_bytes().split(b"\n")[0] + b"\n" + line)
    good, skipped = check_questions(read_questions(path))
    assert [question.line for question in good] == [1]
    assert skipped == 1
    said = capsys.readouterr().err
    assert f"line 2: {message}" in said or f"line 2: has {message}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("recover", ["--intervention", "route:150"], "'route:150': give a percentage"),
        ("recover", ["--intervention", "boost:inf"], "'boost:inf': give a finite number"),
        ("recover", ["--intervention", "copy:nope.png"], "no image at 'nope.png'"),
        ("dilution", ["--between", "think", "bakc"], "--between 'bakc': give the name of a region"),
        ("dilution", ["--between", "40-0", "0-40"], "--between 40-0: no step"),
        ("dilution", ["--between", "0-5", "5-5"], "--between 5-5: no step"),
    ],
)
def test_wrong_options_are_blamed_on_no_line(name, options, message, data, tmp_path, capsys):
    assert main([*command(name, data, tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "line " not in said
    assert not (tmp_path / "out").exists()


def test_half_a_character_is_a_bad_line(tmp_path, data, capsys):
    path = data.with_name("half.jsonl")
    path.write_text('{"image": "0.png", "question": "a \\ud800 b"}\n')
    assert main(command("trend", path, tmp_path)) == 2
    assert "holds half a character" in capsys.readouterr().err


def damaged(path, how):
    if how == "removed":
        path.unlink() if path.is_file() else shutil.rmtree(path)
    elif how == "emptied":
        path.write_text("")
    else:
        path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "how"),
    [
        ("trend", "trend_runs/back/00003_1/trace.zarr", "removed"),
        ("trend", "trend/back/00003_1/summary.json", "emptied"),
        ("trend", "trend/back/00003_1/back_step_attention.png", "cut"),
        ("trend", "trend_runs/back/00003_1/settings.json", "cut"),
        ("recover", "batch_recovery_runs/back/00003_1/recovery.zarr/rise/0.0.0.0", "cut"),
        ("recover", "batch_recovery_runs/back/00003_1/trace.zarr", "removed"),
        ("dilution", "dilution_runs/cot/00003_1/trace.zarr", "removed"),
    ],
)
def test_what_is_damaged_is_done_again(name, path, how, done, copied, data, capsys):
    out = copied(name)
    kept = states(out, "**/00001_0/**/*")
    size = (out / path).stat().st_size
    damaged(out / path, how)
    assert main(command(name, data, out)) == 1
    said = capsys.readouterr().err
    assert f"{COUNT - 1} of {COUNT} questions were done before" in said
    assert f"1 of {COUNT} questions are there in part or damaged, and made again" in said
    assert states(out, "**/00001_0/**/*") == kept
    if path.endswith("summary.json"):  # it names the folder
        assert json.loads((out / path).read_text())["mode"] == "back"
    else:
        assert (out / path).stat().st_size == size
    if name == "recover":
        Recovery.load(out / "batch_recovery_runs" / "back" / "00003_1" / "recovery.zarr")
    for table in out.glob("*.parquet"):
        assert table.read_bytes() == (done[name] / table.name).read_bytes()


def test_a_corrected_truth_is_written_without_asking_again(data, copied, monkeypatch):
    from attnlens.runs import recordings

    out = copied("trend")
    lines = data.read_text().splitlines()
    corrected = data.with_name("corrected.jsonl")
    corrected.write_text(
        "\n".join([json.dumps(json.loads(lines[0]) | {"answer": "x"}), *lines[1:]])
    )
    monkeypatch.setattr(recordings, "record_one", lambda *_: pytest.fail("generated again"))
    assert main(command("trend", corrected, out)) == 1
    table = pd.read_parquet(out / "back_steps.parquet").groupby("line")["expected"].first()
    assert table[1] == "x"
    assert table[3] == json.loads(lines[2])["answer"]


@pytest.mark.slow
def test_a_kept_recovery_is_right_by_the_rule_of_today(data, copied, monkeypatch):
    """What an earlier version wrote into a question's result is not taken over."""
    from attnlens.answers import is_right
    from attnlens.reports import recovery

    out = copied("recover")
    notes = sorted((out / "batch_recovery_runs" / "back").glob(f"*/{SETTINGS}"))
    for note in notes:
        path = note.with_name("recovery.zarr")
        part = Recovery.load(path)
        for name in ("right", "answer_changed"):
            part.data[name] = 1 - part.data[name]
        part.save(path, replace=True)
        sizes = {p: p.stat().st_size for p in note.parent.rglob("*") if p.is_file() and p != note}
        files = {p.relative_to(note.parent).as_posix(): size for p, size in sizes.items()}
        note.write_text(json.dumps(json.loads(note.read_text()) | {"files": files}))
    monkeypatch.setattr(recovery, "_draw", lambda *_: None)
    assert main(command("recover", data, out)) == 1
    data_ = Recovery.load(out / "batch_recovery" / "recovery.zarr").data
    asked = json.loads((out / "batch_recovery" / "summary.json").read_text())["questions"]
    for sample, question in enumerate(asked):
        for run, answer in question["answers"].items():
            here = data_.isel(sample=sample).sel(run=run)
            assert here["right"] == is_right(answer, question["expected"]), (sample, run)
            before = question["answers"]["untouched"]
            changed = answer != before and not is_right(answer, before)
            assert here["answer_changed"] == changed, (sample, run)
    assert len(asked) == len(notes) == COUNT


def test_what_a_checkpoint_says_of_its_pictures_is_noted(tmp_path, testbed):
    from dataclasses import replace

    from attnlens.models.load import TESTBED

    shutil.copytree(TESTBED, tmp_path / "model")
    vlm = replace(testbed, name=str(tmp_path / "model"))
    before = model_provenance(vlm)
    assert any(text.startswith("name") for text in differences(model_provenance(testbed), before))
    (tmp_path / "model" / "notes.md").write_text("nothing that matters")
    assert model_provenance(vlm) == before
    path = tmp_path / "model" / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"note": 1}))
    assert differences(before, model_provenance(vlm)) == ["files.processor_config.json"]
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    os.utime(weights, ns=(1, 1))
    assert differences(before, model_provenance(vlm)) == ["files.processor_config.json"]
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    changed = ["files.model.safetensors", "files.processor_config.json"]
    assert differences(before, model_provenance(vlm)) == changed


def test_other_settings_are_said(copied, data, capsys):
    out = copied("trend")
    capsys.readouterr()
    assert main([*command("trend", data, out), "--max_new_tokens", "8"]) == 1
    said = capsys.readouterr().err
    assert f"{COUNT} of {COUNT} questions were done with other settings" in said
    assert "max_new_tokens (16, now 8)" in said
    assert f"{COUNT} of {COUNT} answers had not ended at the longest length, 8 tokens" in said
    assert pd.read_parquet(out / "back_steps.parquet")["cut_off"].all()


def test_settings_of_one_name_are_told_apart():
    before = {"settings": {"dtype": "auto"}, "model": {"dtype": "float32"}, "answer": None}
    now = {"settings": {"dtype": "bfloat16"}, "model": {"dtype": "bfloat16"}, "answer": "3"}
    assert differences(before, now) == [
        "answer (None, now '3')",
        "model.dtype ('float32', now 'bfloat16')",
        "settings.dtype ('auto', now 'bfloat16')",
    ]
    assert differences(now, now) == []


@pytest.mark.slow
def test_modes_with_other_formats_share_a_folder(copied, data, capsys):
    out = copied("trend")
    other = [*command("trend", data, out), "--mode", "cot", "--format", "svg"]
    capsys.readouterr()
    assert main(other) == 1
    assert "damaged" not in capsys.readouterr().err
    runs = states(out, "trend_runs/*/0*/trace.zarr")
    for again in (command("trend", data, out), other):
        assert main(again) == 1
        assert f"{COUNT} of {COUNT} questions were done before" in capsys.readouterr().err
    assert states(out, "trend_runs/*/0*/trace.zarr") == runs
    for picture in out.glob("trend/*/0*/Step_attention_all_tokens.*"):
        picture.unlink()
    assert main(command("trend", data, out)) == 1
    assert len(list(out.glob("trend/back/0*/Step_attention_all_tokens.png"))) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("trend", "trend_runs/back/00003_1/trace.zarr/mass/0.0.0.0"),
        ("recover", "batch_recovery_runs/back/00003_1/recovery.zarr/rise/0.0.0.0"),
        ("dilution", "dilution_runs/cot/00003_1/trace.zarr/mass/0.0.0.0"),
    ],
)
def test_what_turns_out_to_be_unreadable_is_made_again_the_next_time(
    name, path, done, copied, data, capsys
):
    out = copied(name)
    (damaged,) = out.glob(path)
    damaged.write_bytes(bytes(damaged.stat().st_size))  # as long as before
    assert main(command(name, data, out)) == 2
    said = capsys.readouterr().err
    assert "Give the same command again to make it again" in said
    assert "00003_1" in said
    assert main(command(name, data, out)) == 1
    assert f"{COUNT - 1} of {COUNT} questions were done before" in capsys.readouterr().err
    for table in out.rglob("*.parquet"):
        assert table.read_bytes() == (done[name] / table.relative_to(out)).read_bytes()


def test_regions_that_a_mode_does_not_ask_for_are_said(data, copied, capsys):
    out = copied("dilution")
    assert main([*command("dilution", data, out), "--between", "think", "back"]) == 2
    said = capsys.readouterr().err
    assert "mode 'cot' does not ask for <back>" in said
    assert "does not ask for <think>" not in said


def test_answers_that_had_not_ended_are_said_in_a_recovery(copied, data, capsys):
    out = copied("recover")
    capsys.readouterr()
    assert main(command("recover", data, out)) == 1
    said = capsys.readouterr()
    length = "had not ended at the longest length, 16 tokens (--max_new_tokens)"
    assert f"{COUNT} of {COUNT} questions have an answer that {length}" in said.err
    assert "intervals need 8 prompts (--data); for answers, 12" in said.out


def hold(folder):
    """Keep other processes out of a folder for good."""
    with only_process(folder):
        print("in")
        threading.Event().wait()


def test_a_second_process_is_kept_out(data, copied, capsys):
    out = copied("trend")
    with killed_process(hold, out) as printed:
        assert printed.readline() == "in\n"
        capsys.readouterr()
        assert main(command("trend", data, out)) == 2
        assert "another attnlens is at work in" in capsys.readouterr().err
        assert main(["dilution", "--traces", str(out), "--save_folder", str(out)]) == 2
        assert "another attnlens is at work in" in capsys.readouterr().err
    # the system gives the lock of a killed process back
    assert (out / ".attnlens-lock").exists()
    assert main(command("trend", data, out)) == 1
    assert not (out / ".attnlens-lock").exists()


@pytest.mark.slow
def test_the_lock_lasts_from_before_the_model_is_loaded_to_the_last_table(
    data, copied, monkeypatch
):
    from attnlens.models import load
    from attnlens.reports import dilution, recovery, trend

    held = []

    def watch(module, name):
        inner = getattr(module, name)

        def watched(*args, **options):
            held.append((out / ".attnlens-lock").exists())
            return inner(*args, **options)

        monkeypatch.setattr(module, name, watched)

    watch(load, "load")
    watch(trend, "write_parts")
    watch(recovery, "write_parquet")
    watch(dilution, "write_folder")
    for name in ("trend", "recover", "dilution"):
        out = copied(name)
        held.clear()
        assert main(command(name, data, out)) == 1
        assert held == [True, True]
        shutil.rmtree(out)


def test_a_folder_made_for_nothing_is_taken_away(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command("trend", data, out, "--layers", 99)) == 2
    assert "99" in capsys.readouterr().err
    assert not out.exists()


def test_a_question_that_fails_is_tried_again(data, tmp_path, monkeypatch, capsys):
    from attnlens.runs import recordings

    record_one = recordings.record_one
    calls = []

    def sometimes(vlm, question, settings):
        calls.append(question)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return record_one(vlm, question, settings)

    monkeypatch.setattr(recordings, "record_one", sometimes)
    assert main(command("trend", data, tmp_path)) == 1
    assert "line 3 failed: out of memory" in capsys.readouterr().err
    assert set(pd.read_parquet(tmp_path / "back_steps.parquet")["line"]) == {1, 4}
    assert main(command("trend", data, tmp_path)) == 1
    assert len(calls) == 4
    assert set(pd.read_parquet(tmp_path / "back_steps.parquet")["line"]) == {1, 3, 4}


def test_the_table_holds_what_was_measured(done):
    tmp_path = done["trend"]
    table = pd.read_parquet(tmp_path / "back_steps.parquet")
    assert not table.duplicated(["line", "step"]).any()
    for line, rows in table.groupby("line"):
        (folder,) = tmp_path.glob(f"trend_runs/back/{line:05d}_*")
        trace = attnlens.Trace.load(folder / "trace.zarr")
        mass = trace.data["mass"].values
        assert len(rows) == len(mass)
        for s, segment in enumerate(trace.data["segment"].values.tolist()):
            mean = mass[..., s].mean((1, 2))
            np.testing.assert_allclose(rows[f"mass_{segment}"], mean, atol=1e-6)
            keys = trace.data["keys"].values[:, s]
            np.testing.assert_array_equal(rows[f"keys_{segment}"], keys)
        assert "".join(rows["predicted_token"].astype(str)) == trace.text
        share = attnlens.measures.visual_share(trace, "look-back").values
        np.testing.assert_allclose(rows["look-back"].values[1:], share)
        assert np.isnan(rows["look-back"].values[0])
    assert table["right"].isna().sum() == 0


def test_leftovers_of_a_killed_process(tmp_path):
    for name in (".run-abcd1234", ".run-abcd1234-old", ".run-other-one", ".runs-abcd1234"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    clear_leftover_folders([tmp_path / "run"])
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"run", ".run-other-one", ".runs-abcd1234"}
    # the old one is set aside when the new one is complete
    assert (tmp_path / "run" / "file").read_text() == ".run-abcd1234"
    (tmp_path / "run").rename(tmp_path / ".run-efgh5678-old")
    clear_leftover_folders([tmp_path / "run"])
    assert (tmp_path / "run" / "file").read_text() == ".run-abcd1234"
    clear_leftover_folders([tmp_path / "nowhere" / "run"])
    mine = {".steps-abcd1234.csv", ".step-abcd1234.parquet", ".run-my_notes", ".run-abcd1234-old"}
    for name in (*mine, ".steps-abcd1234.parquet"):
        (tmp_path / name).write_text(name)
    clear_leftover_files(tmp_path / "steps.parquet")
    clear_leftover_folders([tmp_path / "run"])
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == mine


def test_tables_are_written_whole_or_not_at_all(tmp_path, tiny):
    image = held_out_sample(3, 0, "back").scene.draw()
    trace = attnlens.run(tiny, tiny.prompt(image, "What?", "cot"), 6)
    table = steps_table(trace, Question("a.png", "What?"))

    def tables():
        yield table
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_parquet(tmp_path / "t.parquet", tables())
    assert not list(tmp_path.iterdir())
    assert write_parquet(tmp_path / "t.parquet", [table, table]) == 12
    back = pd.read_parquet(tmp_path / "t.parquet")
    assert back["right"].isna().all()
    assert back["expected"].isna().all()
    assert back["line"].isna().all()
    np.testing.assert_array_equal(back["mass_visual"][:6], table["mass_visual"])


def test_a_table_of_many_answers_is_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_module, "PART", 2)
    monkeypatch.setattr(tables_module, "ROWS", 5)
    tables = [pd.DataFrame({"line": [n] * 3, "step": range(3)}) for n in range(5)]
    path = tmp_path / "steps.parquet"
    for count, files in ((2, 0), (5, 3), (1, 0)):
        write_parts(path, tables[:count], count)
        assert len(list(path.glob("part-*.parquet"))) == files
        back = pd.read_parquet(path)
        pd.testing.assert_frame_equal(back, pd.concat(tables[:count], ignore_index=True))
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_recoveries_are_saved_loaded_and_joined(tiny, tmp_path):
    pictures = [held_out_sample(3, i, "back").scene.draw() for i in range(2)]
    prompts = [tiny.prompt(image, "What?", "cot") for image in pictures]
    ways = [Copy(when=AtStep(3)), Route(percent=50, when=AtStep(4))]
    whole = attnlens.recover(tiny, prompts, ways, 9, expected=["1", "2"], detail="layer")
    whole.save(tmp_path / "whole.zarr")
    assert Recovery.load(tmp_path / "whole.zarr").data.identical(whole.data)

    parts = []
    for i, (prompt, truth) in enumerate(zip(prompts, ["1", "2"], strict=True)):
        part = attnlens.recover(tiny, prompt, ways, 6 + 3 * i, expected=truth, detail="layer")
        part.save(tmp_path / f"{i}.zarr")
        parts.append(Recovery.load(tmp_path / f"{i}.zarr"))
    joined = Recovery.join(parts)
    assert joined.data.sizes["step"] == 9
    second = joined.data.isel(sample=1)
    for name, values in whole.data.isel(sample=1).data_vars.items():
        if name != "seconds":
            assert second[name].equals(values), name
    assert joined.data["rise"].isel(sample=0, step=slice(6, None)).isnull().all()

    other = attnlens.recover(tiny, prompts[0], ways[:1], 6, detail="layer")
    with pytest.raises(InputError, match="differ in interventions"):
        Recovery.join([parts[0], other])
    with pytest.raises(InputError, match="no recovery was given"):
        Recovery.join([])
    whole.data.to_netcdf(tmp_path / "whole.nc", engine="scipy")
    (tmp_path / "bad.nc").write_bytes((tmp_path / "whole.nc").read_bytes()[:500])
    with pytest.raises(InputError, match=r"bad\.nc"):
        Recovery.load(tmp_path / "bad.nc")
    with pytest.raises(InputError, match=r"none\.zarr"):
        Recovery.load(tmp_path / "none.zarr")
