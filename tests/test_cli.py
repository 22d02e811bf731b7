"""The command: what it writes, and one clear line for every bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture

import attnlens
from attnlens import interventions
from attnlens.cli.main import main, spell_options
from attnlens.testbed import held_out_sample

ASKED = ("--image_path", "scene.png", "--question", "How many?")
QUESTION = "Subtract all red objects. How many objects are left?"
PICTURES = {
    "back_step_attention.png",
    "back_step_attention_with_tokens.png",
    "Step_attention_all_tokens.png",
}


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    held_out_sample(0, 0, "back").scene.draw().save(path)
    return path


def trend(*options, image=None, question=QUESTION, folder=None):
    arguments = ["trend"]
    if image is not None:
        arguments += ["--image_path", str(image)]
    if question is not None:
        arguments += ["--question", question]
    if folder is not None:
        arguments += ["--save_folder", str(folder)]
    return main([*arguments, *map(str, options)])


def test_trend_writes_pictures_trace_and_summary(tmp_path, scene, capsys):
    folder = tmp_path / "results"
    assert trend("--mode", "back", image=scene, folder=folder) == 0
    printed = capsys.readouterr().out
    written = {p.name for p in (folder / "scene").iterdir()}
    assert written == PICTURES | {"back_trace.zarr", "back_steps.csv", "summary.json"}
    for name in PICTURES:
        assert (folder / "scene" / name).read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "scene" / "summary.json").read_text())
    trace = attnlens.Trace.load(folder / "scene" / "back_trace.zarr")
    assert summary["response"] == trace.text
    assert trace.text in printed
    assert str(folder / "scene") in printed
    assert [r["name"] for r in summary["regions"]] == [r.name for r in trace.regions]
    assert "back" in {r.name for r in trace.regions}
    share = attnlens.measures.decay(trace, definition="look-back")
    assert summary["decay"] == json.loads(json.dumps(share.as_dict()))
    assert summary["refocus"]["rise"] is not None
    assert set(summary["versions"]) >= {"attnlens", "torch", "transformers"}
    # another mode adds its files and leaves the others
    assert trend("--mode", "normal", "--format", "pdf", "svg", image=scene, folder=folder) == 0
    now = {p.name for p in (folder / "scene").iterdir()}
    # the picture of all tokens has no mode in its name: the last run's is the one that stays
    assert now >= written - {"Step_attention_all_tokens.png"}
    assert {"normal_step_attention.pdf", "normal_step_attention.svg", "normal_trace.zarr"} <= now
    assert {p.name for p in folder.iterdir()} == {"scene"}


def test_what_is_not_this_runs_stays_in_the_folder(tmp_path, scene):
    """Also where it has the name of something that a run writes, one folder further down."""
    folder = tmp_path / "results" / "scene"
    assert trend("--max_new_tokens", "4", image=scene, folder=folder.parent) == 0
    kept = {
        "run_A/summary.json": "old",
        "run_A/back_trace.zarr/attnlens.json": "old",
        "run_A/Step_attention_all_tokens.png": "old",
        "back_notes.txt": "mine",
    }
    for name, text in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert trend("--max_new_tokens", "5", image=scene, folder=folder.parent) == 0
    assert {name: (folder / name).read_text() for name in kept} == kept
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5


def test_tokens_are_those_of_plain_generation(tmp_path, scene, testbed):
    assert trend("--layers", "-1,0", image=scene, folder=tmp_path / "out") == 0
    trace = attnlens.Trace.load(tmp_path / "out" / "scene" / "back_trace.zarr")
    prompt = testbed.prompt(scene, QUESTION, "back")
    ids = testbed.model.generate(**prompt.inputs, max_new_tokens=2048, do_sample=False)
    plain = ids[0, len(prompt.segments) :].tolist()
    assert trace.data["predicted_token_id"].values.tolist() == plain
    assert trace.data["layer"].values.tolist() == [0, 3]


@pytest.mark.slow
def test_a_seed_repeats_a_sampled_answer(tmp_path, scene):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--temperature", 2.0, "--seed", seed, "--max_new_tokens", 40)
        assert trend(*options, image=scene, folder=tmp_path / name) == 0
        texts.append(json.loads((tmp_path / name / "scene" / "summary.json").read_text()))
    assert texts[0]["response"] == texts[1]["response"] != texts[2]["response"]


def test_batch_of_questions(tmp_path, scene, capsys):
    lines = [
        json.dumps({"image": "scene.png", "question": QUESTION, "answer": "3"}),
        "not json",
        json.dumps({"image": "missing.png", "question": QUESTION}),
        "",
        json.dumps({"image": "scene.png", "question": "Is there a red circle?"}),
        json.dumps({"image": "scene.png"}),
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    arguments = ["--data", tmp_path / "questions.jsonl", "--mode", "cot"]
    assert trend(*arguments, question=None, folder=tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "line 2: is not valid JSON" in err
    assert "line 3: there is no image" in err
    assert "line 6: has no 'question'; it has 'image'" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "trend",
        "trend_runs",
        "cot_steps.parquet",
    }
    for folder in ("trend", "trend_runs"):
        shown = tmp_path / "out" / folder / "cot"
        assert {p.name for p in shown.iterdir()} == {"00001_scene", "00005_scene"}
    summary = json.loads(
        (shown.parents[1] / "trend" / "cot" / "00001_scene" / "summary.json").read_text()
    )
    assert summary["expected"] == "3"


def test_a_broken_picture_does_not_lose_the_generation(tmp_path, scene, monkeypatch, capsys):
    from attnlens import plots

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(plots, "save", fail)
    assert trend("--mode", "cot", image=scene, folder=tmp_path / "out") == 1
    assert "disk full" in capsys.readouterr().err
    written = {p.name for p in (tmp_path / "out" / "scene").iterdir()}
    assert written == {"cot_trace.zarr", "cot_steps.csv", "summary.json"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scene"]


def test_ctrl_c_while_drawing_does_not_lose_the_generation(tmp_path, scene, monkeypatch, capsys):
    from attnlens import plots

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "save", interrupted)
    assert trend("--mode", "cot", image=scene, folder=tmp_path / "out") == 130
    assert "trace and summary are in" in capsys.readouterr().err
    written = {p.name for p in (tmp_path / "out" / "scene").iterdir()}
    assert written == {"cot_trace.zarr", "cot_steps.csv", "summary.json"}


def test_results_of_another_picture_of_that_name_stay(tmp_path, scene, capsys):
    """Two pictures with the same name go into the same folder: nothing is replaced unseen."""
    short = ("--max_new_tokens", "4")
    out = tmp_path / "out"
    assert trend(*short, image=scene, folder=out) == 0
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "scene.png"
    held_out_sample(0, 1, "back").scene.draw().save(other)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    for mode in ("back", "cot"):
        assert trend("--mode", mode, *short, image=other, folder=out) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert f"another picture ({str(scene)!r}) than {str(other)!r}" in captured.err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    # another question about the same picture, wherever that lies, replaces what was there
    (tmp_path / "elsewhere" / "scene.png").write_bytes(scene.read_bytes())
    assert trend(*short, image=other, question="Is there a red circle?", folder=out) == 0
    assert f"another question ({QUESTION!r})" in capsys.readouterr().err
    summary = json.loads((out / "scene" / "summary.json").read_text())
    assert summary["question"] == "Is there a red circle?"
    # and what is no summary of a run says nothing
    (out / "scene" / "summary.json").write_text("[1]")
    assert trend(*short, image=other, folder=out) == 0
    assert "another" not in capsys.readouterr().err


def test_an_answer_of_one_token_is_kept(tmp_path, scene, monkeypatch, capsys):
    """Under look-back it has no step to draw, and under mass it has one."""
    from attnlens.runs import recordings

    def one_token(vlm, question, settings, alone):
        return attnlens.run(vlm, settings.prompt(vlm, question), 1)

    monkeypatch.setattr(recordings, "record_one", one_token)
    assert trend(image=scene, folder=tmp_path / "none") == 0
    captured = capsys.readouterr()
    written = {p.name for p in (tmp_path / "none" / "scene").iterdir()}
    assert written == {"back_trace.zarr", "back_steps.csv", "summary.json"}
    cut_off = "the answer had not ended at the longest length, 1 token (--max_new_tokens)"
    assert captured.err.count("\n") == 2
    assert cut_off in captured.err
    assert "left out back_step_attention, " in captured.err
    assert "'look-back' has no step" in captured.err
    assert "written to" in captured.out
    assert trend("--definition", "mass", image=scene, folder=tmp_path / "one") == 0
    written = {p.name for p in (tmp_path / "one" / "scene").iterdir()}
    assert written == PICTURES | {"back_trace.zarr", "back_steps.csv", "summary.json"}
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert cut_off in err


def test_checking_many_images_shows_how_far_it_is(scene, monkeypatch):
    from attnlens.runs import dataset

    bars = []

    def bar(items, *, description):
        bars.append((list(items), description))
        return items

    monkeypatch.setattr(dataset, "progress", bar)
    many = [dataset.Question(str(scene), "How many?", line=n) for n in (1, 2, 3)]
    digest = hashlib.sha256(scene.read_bytes()).hexdigest()
    hashed = [dataclasses.replace(one, image_sha256=digest) for one in many]
    good, skipped = dataset.check_questions(many)
    assert (list(good), skipped) == (hashed, 0)
    assert bars == [(many, "images")]
    assert dataset.check_questions([dataset.Question(str(scene), "How many?")])[1] == 0
    assert len(bars) == 1


def _text_named_png(folder: Path) -> Path:
    path = folder / "text.png"
    path.write_text("this is no picture")
    return path


def _truncated(folder: Path) -> Path:
    whole = folder / "whole.png"
    picture(300, 300).save(whole)
    path = folder / "half.png"
    path.write_bytes(whole.read_bytes()[:2000])
    whole.unlink()
    return path


def _thin(folder: Path) -> Path:
    path = folder / "thin.png"
    picture(2010, 10).save(path)
    return path


def _named(folder: Path, name: str) -> Path:
    path = folder / name
    picture().save(path, format="PNG")
    return path


def _text_model(folder: Path) -> Path:
    path = folder / "text_model"
    path.mkdir()
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (path / "config.json").write_text(json.dumps(config))
    return path


def _no_model(folder: Path) -> Path:
    path = folder / "no_model"
    path.mkdir()
    return path


def _file_in_the_way(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("in the way")
    return path / "results"


BAD = {
    "missing image": (lambda d: {"image": d / "none.png"}, "there is no image"),
    "a folder as image": (lambda d: {"image": d}, "is not a file"),
    "text named png": (lambda d: {"image": _text_named_png(d)}, "is not a picture"),
    "truncated png": (lambda d: {"image": _truncated(d)}, "cannot be read as a picture"),
    "extreme aspect ratio": (lambda d: {"image": _thin(d)}, "2010 x 10 pixels"),
    "empty question": (lambda d: {"question": "  "}, "question is empty"),
    "no question": (lambda d: {"question": None}, "--question is missing"),
    "unknown mode": (lambda d: {"options": ["--mode", "fast"]}, "invalid choice: 'fast'"),
    "unknown definition": (lambda d: {"options": ["--definition", "gaze"]}, "'gaze'"),
    "folder without a model": (
        lambda d: {"options": ["--model_path", _no_model(d)]},
        "no config.json",
    ),
    "text-only model": (
        lambda d: {"options": ["--model_path", _text_model(d)]},
        "is a 'qwen2' checkpoint",
    ),
    "no such model": (lambda d: {"options": ["--model_path", d / "nowhere"]}, "no checkpoint"),
    "absent device": (lambda d: {"options": ["--device", "cuda:7"]}, "'cuda:7' is not there"),
    "odd device": (lambda d: {"options": ["--device", "toaster"]}, "'toaster' is not there"),
    "folder behind a file": (lambda d: {"folder": _file_in_the_way(d)}, "is not a folder"),
    "file for results": (lambda d: {"folder": _results_are_a_file(d)}, "is not a folder"),
    "device without values": (lambda d: {"options": ["--device", "meta"]}, "'meta' is not there"),
    "no new tokens": (lambda d: {"options": ["--max_new_tokens", "0"]}, "give at least 1"),
    "negative temperature": (lambda d: {"options": ["--temperature", "-1"]}, "--temperature -1"),
    "one token alone": (lambda d: {"options": ["--max_new_tokens", "1"]}, "give at least 2"),
    "image named ..": (lambda d: {"image": _named(d, "...png")}, "a folder named '..'"),
    "image named .": (lambda d: {"image": _named(d, "..png")}, "a folder named '.'"),
    "long folder": (lambda d: {"folder": d / ("a" * 300)}, "name is too long"),
    "odd layers": (lambda d: {"options": ["--layers", "a-b"]}, "--layers 'a-b'"),
    "absent layer": (lambda d: {"options": ["--layers", "9"]}, "no layer 9"),
    "unknown option": (
        lambda d: {"options": ["--colour", "red"]},
        "attnlens trend: error: unrecognized arguments: --colour red (see attnlens trend --help)",
    ),
    "layers backwards": (lambda d: {"options": ["--layers", "3-1"]}, "'3-1' runs backwards"),
    "special token": (lambda d: {"question": "<|image_pad|>?"}, "special token"),
    "half a character": (lambda d: {"question": "What \udcff?"}, r"'What \udcff?' is not UTF-8"),
    "a name in no UTF-8": (lambda d: {"image": d / "\udcff.png"}, r"\udcff.png' is not UTF-8"),
}


def _results_are_a_file(folder: Path) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "scene").write_text("a file where the results go")
    return folder / "out"


def run_bad(make, tmp_path, scene):
    given = make(tmp_path)
    folder = given.get("folder", tmp_path / "results")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    try:
        status = trend(
            *given.get("options", ()),
            image=given.get("image", scene),
            question=given.get("question", QUESTION),
            folder=folder,
        )
    except SystemExit as exit_:
        status = exit_.code
    after = sorted(str(p) for p in tmp_path.rglob("*"))
    return status, before == after


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, tmp_path, scene, capsys):
    make, words = BAD[name]
    status, untouched = run_bad(make, tmp_path, scene)
    captured = capsys.readouterr()
    assert status == 2
    assert untouched
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""


def test_layers_that_are_not_there_are_one_error_for_a_whole_file(tmp_path, scene, capsys):
    lines = [json.dumps({"image": scene.name, "question": QUESTION}) for _ in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    options = ("--batch", tmp_path / "q.jsonl", "--layers", "9")
    assert trend(*options, question=None, folder=tmp_path / "results") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_conclusion_without_a_box_is_the_answer():
    from attnlens.answers import final_answer

    text = "<CAPTION>a cat</CAPTION><CONCLUSION> Two cats. </CONCLUSION>"
    assert final_answer(text) == "Two cats."
    assert final_answer(text + " \\boxed{2}") == "2"
    assert final_answer("<CONCLUSION>cut sho") == "cut sho"
    assert final_answer("<think>2</think>") is None
    assert final_answer("<CONCLUSION> </CONCLUSION>") is None


def test_a_folder_that_may_not_be_written(tmp_path, scene, capsys, monkeypatch):
    import os

    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode)
    )
    assert trend(image=scene, folder=tmp_path / "results") == 2
    assert "no permission to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["testbed", "sample", "--out", "x", "--count", "0"], "--count 0"),
        (["testbed", "score", "--scenes", "0"], "--scenes 0"),
        (["testbed", "train", "--out", "x", "--steps", "0"], "--steps 0"),
        (["testbed", "train", "--out", "x", "--seed", "-1"], "--seed -1"),
        (["bench", "--new", "1"], "--new 1"),
        (["recover", "--intervention", "copy"], "--image_path is missing"),
        (["recover", "--intervention", "glue", *ASKED], "unknown intervention 'glue'"),
        (["recover", "--intervention", "route:x", *ASKED], "'x' is not a number"),
        (["recover", "--intervention", "copy", "--when", "step:-1", *ASKED], "inside the prompt"),
        (["recover", "--intervention", "copy", "--definition", "gaze", *ASKED], "'gaze'"),
        (["recover", "--intervention", "copy", "--max_new_tokens", "1", *ASKED], "at least 2"),
        (["bench", "--visual", "0"], "--visual 0"),
        (["bench", "--device", "cuda:9"], "'cuda:9' is not there"),
        (["bench", "--json", "."], "cannot write a file '.'"),
    ],
)
def test_bad_input_of_the_other_commands(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_before_the_command_are_sent_behind_it(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--image-path", "scene.png", "--question", "How many?"])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "write attnlens trend --image_path ..." in err


def test_options_are_spelled_either_way():
    assert spell_options(["--layers", "-1,0", "--mode", "cot"]) == [
        "--layers=-1,0",
        "--mode",
        "cot",
    ]
    spelled = spell_options(["trend", "--image-path", "a-b.png", "--save-folder=x-y", "-h", "--"])
    assert spelled == ["trend", "--image_path", "a-b.png", "--save_folder=x-y", "-h", "--"]


def test_help_is_light():
    """Neither torch nor anything else that is slow to import is loaded for --help."""
    code = (
        "import sys; from attnlens.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'pandas', 'scipy', 'xarray', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    for arguments in ([], ["--help"], ["trend", "--help"], ["bench", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert "HEAVY []" in done.stdout


def test_help_names_every_intervention(capsys):
    with pytest.raises(SystemExit):
        main(["recover", "--help"])
    text = "".join(capsys.readouterr().out.split())
    kinds = [getattr(interventions, name) for name in interventions.__all__]
    forms = [form for kind in kinds for form in getattr(kind, "forms", ())]
    assert len(forms) > 10
    assert [form for form in forms if form not in text] == []


def test_hostile_answers_are_escaped_on_the_terminal(testbed, capsys):
    from attnlens.runs.printed_answer import PrintedAnswer

    PrintedAnswer(testbed.tokenizer).on_finalized_text("a\x1b[31mred\x07\n", stream_end=True)
    assert capsys.readouterr().out == "a\\x1b[31mred\\x07\n\n"


def test_testbed_sample_writes_truth(tmp_path, capsys):
    out = tmp_path / "samples"
    assert main(["testbed", "sample", "--out", str(out), "--count", "2", "--seed", "3"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "0000.json",
        "0000.png",
        "0001.json",
        "0001.png",
        "questions.jsonl",
    ]
    truth = json.loads((out / "0001.json").read_text())
    sample = held_out_sample(3, 1, "back")
    assert truth["answer"] == sample.answer
    assert truth["expected"] == sample.question.answer
    assert main(["testbed", "sample", "--out", str(out)]) == 2  # never over what is there
    assert "exists already" in capsys.readouterr().err
