"""Options of the commands that say in what words, and at what size, a question is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import picture

import attnlens
from attnlens.cli.arguments import recording_options
from attnlens.cli.main import main, parser
from attnlens.models.modes import MODE_NAMES
from attnlens.runs.cache import Entry
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import differences, provenance
from attnlens.runs.settings import RecordingSettings, RecoverySettings

QUESTION = "How many objects are left?"


@pytest.fixture
def scene(tmp_path):
    picture(400, 300).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def ask(command, scene, *options):
    asked = ["--image_path", str(scene), "--question", QUESTION, "--max_new_tokens", "4"]
    return main([command, *asked, "--save_folder", str(scene.parent / "out"), *map(str, options)])


def trace(scene, mode="back"):
    return attnlens.Trace.load(scene.parent / "out" / "scene" / f"{mode}_trace.zarr")


def user(found) -> str:
    return found.attrs["prompt"].split("<|vision_end|>")[1].split("<|im_end|>")[0]


def settings_of(*arguments) -> RecordingSettings:
    """Parse a command line of trend as far as it says what is asked."""
    options = parser().parse_args(["trend", *map(str, arguments)])
    return RecordingSettings(**recording_options(options))


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_the_file_of_a_template(tmp_path, end):
    file = tmp_path / "template.txt"
    words = "Look closely: {question}\nPut it in \\boxed{}. é"
    file.write_bytes(("\ufeff" + words + end).encode())
    template = settings_of("--template", file).template
    assert template == words + ("\n" if end == "\n\n" else "")  # one line end is the file's


def test_a_template_and_a_system_prompt(scene):
    file = scene.parent / "template.txt"
    file.write_text("Look closely: {question}\nPut it in \\boxed{}.\n")
    assert ask("trend", scene, "--template", file, "--system", "Be brief.") == 0
    found = trace(scene)
    assert user(found) == f"Look closely: {QUESTION}\nPut it in \\boxed{{}}."
    assert found.attrs["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    settings = json.loads((scene.parent / "out/scene/summary.json").read_text())["settings"]
    assert settings["system"] == "Be brief."
    assert settings["template"].startswith("Look closely: {question}")


def test_an_empty_system_prompt(scene, testbed):
    settings = settings_of("--system", "")
    text = settings.prompt(testbed, Question(str(scene), QUESTION)).text
    assert text.startswith("<|im_start|>system\n<|im_end|>")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"Look.", "'Look.' has no place for the question: put {question} into it"),
        (b"", "has no place for the question"),
        (b"{question} \xff", "not UTF-8"),
        (b"x" * 200_000, "has no place for the question"),
        ("folder", "directory"),
    ],
)
@pytest.mark.parametrize("command", ["trend", "recover", "dilution"])
def test_templates_that_cannot_be_used(command, content, words, scene, capsys, monkeypatch):
    file = scene.parent / "template.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(attnlens.models.load, "load", lambda *_, **__: pytest.fail("loaded"))
    more = ["--intervention", "copy"] if command == "recover" else []
    if command == "dilution":
        status = main(["dilution", "--data", str(scene), "--template", str(file)])
    else:
        status = ask(command, scene, "--template", file, *more)
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert str(file) in error
    assert len(error.splitlines()) == 1
    assert len(error) < 500


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_every_mode_is_asked_by_the_command(mode, scene, testbed):
    settings = settings_of("--mode", mode)
    settings.check()
    prompt = settings.prompt(testbed, Question(str(scene), QUESTION))
    assert prompt.text == testbed.prompt(scene, QUESTION, mode).text
    assert prompt.mode == mode


def test_unknown_modes_are_refused_with_those_that_are_known(scene, capsys):
    with pytest.raises(SystemExit) as left:
        ask("trend", scene, "--mode", "backwards")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert all(f"'{name}'" in error or name in error for name in MODE_NAMES)


@pytest.mark.parametrize("command", ["trend", "recover", "dilution"])
def test_help_states_both_forms_of_look_back(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "as its evaluation asks (semantic-back, solution-back" in said
    assert "or as its att_trend_viz.py does (trend-back" in said
    for option in ("--template FILE", "--system TEXT", "--min_pixels N", "--max_pixels N"):
        assert option in said


def test_limits_of_pixels_reach_the_trace(scene):
    limits = {"min_pixels": 16 * 784, "max_pixels": 24 * 784}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
    assert ask("trend", scene, *options) == 0
    (noted,) = trace(scene).attrs["images"]
    assert limits.items() <= noted.items()
    assert (noted["rows"], noted["columns"]) == (4, 5)
    assert (trace(scene).data["keys"].sel(segment="visual") == 20).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min_pixels", "0"], "min_pixels=0: give a whole number of pixels of at least 1"),
        (["--min_pixels", "9", "--max_pixels", "8"], "min_pixels=9 is more than max_pixels=8"),
        (["--max_pixels", "700"], "max_pixels=700: a visual token takes 784"),
        (["--min_pixels", "9000000"], "which one is the checkpoint's: give both"),
    ],
)
def test_limits_of_pixels_that_cannot_hold(options, words, scene, capsys):
    assert ask("trend", scene, *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (scene.parent / "out").exists()


CHANGES = {
    "min_pixels": 37 * 784,
    "max_pixels": 41 * 784,
    "system": "Be brief.",
    "template": "{question} Say a number.",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_words_or_limits_are_other_settings(change):
    """What results follow from is noted: a rerun is never taken for one of another prompt."""
    question = Question("scene.png", QUESTION)
    for kind, more in ((RecordingSettings, {}), (RecoverySettings, {"interventions": ("copy",)})):
        before = provenance(question, kind(mode="back", **more), {})
        now = kind(mode="back", **more, **{change: CHANGES[change]})
        now = provenance(question, now, {})
        assert Entry(Path(), before).key != Entry(Path(), now).key
        assert [said.split(" ")[0] for said in differences(before, now)] == [f"settings.{change}"]


@pytest.mark.slow
def test_a_rerun_at_another_size_is_done_again(scene, capsys):
    line = {"image": "scene.png", "question": QUESTION}
    (scene.parent / "q.jsonl").write_text(json.dumps(line))
    given = ["trend", "--data", str(scene.parent / "q.jsonl"), "--max_new_tokens", "3"]
    given += ["--save_folder", str(scene.parent / "out")]
    assert main(given) == 0
    capsys.readouterr()
    larger = [*given, "--max_pixels", str(200 * 784)]
    assert main(larger) == 0
    said = capsys.readouterr().err
    assert "1 of 1 questions were done with other settings" in said
    assert "settings.max_pixels (None, now 156800)" in said
    path = scene.parent / "out" / "trend_runs" / "back" / "00001_scene" / "trace.zarr"
    (noted,) = attnlens.Trace.load(path).attrs["images"]
    assert noted["rows"] * noted["columns"] == 11 * 14  # the whole picture, 400 x 300
    assert main(larger) == 0
    assert "1 of 1 questions were done before" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verification_of_a_prompt_is_where_recover_acts(scene, capsys):
    asked = ["--intervention", "copy"]
    assert ask("recover", scene, "--mode", "solution-back", *asked) == 0
    summary = json.loads((scene.parent / "out/scene_recovery/summary.json").read_text())
    assert summary["settings"]["when"] == "<back>"
    (scene.parent / "t.txt").write_text("{question} Check inside <REFLECTION> </REFLECTION>.")
    assert ask("recover", scene, "--template", scene.parent / "t.txt", *asked) == 0
    summary = json.loads((scene.parent / "out/scene_recovery/summary.json").read_text())
    assert summary["settings"]["when"] == "<REFLECTION>"
    capsys.readouterr()
    for mode in ("trend-cot", "look-back-cot"):
        assert ask("recover", scene, "--mode", mode, *asked) == 2
        assert "give --when, such as --when step:20" in capsys.readouterr().err
    assert ask("recover", scene, "--mode", "trend-cot", *asked, "--when", "step:2") == 0


@pytest.mark.slow
def test_mutual_information_with_words_of_ones_own(tmp_path, capsys):
    """Answers are measured against prompts with other images or none, in the same words."""
    for i in range(2):
        picture(200, 200, i).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i}.png", "question": QUESTION} for i in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "t.txt").write_text("{question} Say a number.")
    given = ["dilution", "--data", str(tmp_path / "q.jsonl"), "--save_folder", str(tmp_path)]
    given += ["--max_new_tokens", "8", "--samples", "1", "--template", str(tmp_path / "t.txt")]
    given += ["--system", "Be brief.", "--max_pixels", str(40 * 784)]
    assert main(given) == 0, capsys.readouterr().err
    assert (tmp_path / "dilution" / "information.png").exists()
