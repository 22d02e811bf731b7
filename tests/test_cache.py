"""The cache of runs: nothing is lost, doubled or stale, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from helpers_processes import run_in_process

import attnlens
from attnlens.errors import InputError
from attnlens.files import clear_leftover_folders
from attnlens.reports import trend
from attnlens.reports.table import steps_table
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import canonical
from attnlens.runs.settings import RecordingSettings
from attnlens.runs.workers import OneProcess

QUESTIONS = [Question(f"{n}.png", f"How many {n}?", line=n) for n in (1, 2)]


def entries(folder: Path, seed: int) -> dict[Question, Entry]:
    return {
        one: Entry(folder / one.folder, {"question": one.text, "settings": {"seed": seed}})
        for one in QUESTIONS
    }


def make_all(folder: Path, seed: int) -> list[int | None]:
    """Make what is not there; the lines that were made."""
    made = []

    def make(question: Question) -> Callable:
        def write(vlm: None, place: Path) -> None:
            made.append(question.line)
            (place / "result.txt").write_text(f"{question.text} {seed}")

        return write

    runs = [Run(one, None, entry, make(one)) for one, entry in entries(folder, seed).items()]
    there = make_each(runs, OneProcess(None), command="test")
    assert [run.question for run in there] == QUESTIONS
    return made


def test_an_entry_is_made_once_and_again_only_when_something_changed(tmp_path):
    assert make_all(tmp_path, 0) == [1, 2]
    assert make_all(tmp_path, 0) == []
    assert make_all(tmp_path, 1) == [1, 2]
    first, second = entries(tmp_path, 1).values()
    assert (first.folder / "result.txt").read_text() == "How many 1? 1"
    (first.folder / "result.txt").write_text("How many")
    assert not first.is_there()
    assert make_all(tmp_path, 1) == [1]
    before = second.identity
    (second.folder / "settings.json").write_text("{")
    assert make_all(tmp_path, 1) == [2]
    assert second.identity != before  # what was made from the former is made anew, too
    assert {p.name for p in tmp_path.iterdir()} == {"00001_1", "00002_2"}


def test_the_key_depends_on_values_alone():
    one = {"question": "é?", "settings": {"seed": 1, "formats": ("png", "pdf")}}
    same = json.loads(json.dumps({"settings": {**one["settings"]}, "question": "é?"}))
    assert canonical(one) == canonical(same)
    assert Entry(Path("a"), one).key == Entry(Path("b"), same).key
    assert Entry(Path("a"), {**one, "more": None}).key != Entry(Path("a"), one).key


def test_unreadable_results_are_made_again_next_time(tmp_path):
    make_all(tmp_path, 0)
    first, _ = entries(tmp_path, 0).values()
    with pytest.raises(InputError, match="Give the same command again"), first.reading():
        raise InputError("it cannot be read")
    assert first.note()["settings"]["question"] == "How many 1?"  # not to be written over unseen
    assert make_all(tmp_path, 0) == [1]


def test_what_is_no_result_is_not_removed(tmp_path):
    first, _ = entries(tmp_path, 0).values()
    first.folder.mkdir()
    (first.folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than the results of a question"):
        make_all(tmp_path, 0)
    assert (first.folder / "thesis.txt").read_text() == "mine"
    (first.folder / "thesis.txt").unlink()
    assert make_all(tmp_path, 0) == [1, 2]


OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}
FORKS = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def kill_before_each(
    root: Path, prepare: Callable[[Path], object], act: Callable[[Path], object], stride: int = 1
) -> None:
    """Let one process after the other act; each is killed some operations on files later."""
    kills = 0
    while True:
        folder = root / str(kills)
        prepare(folder)
        child = os.fork()
        if child == 0:
            left = kills

            def hook(event, args, folder=folder):
                nonlocal left
                if event in OPERATIONS and str(folder) in str(args[0]):
                    if left == 0:
                        os._exit(9)
                    left -= 1

            sys.addaudithook(hook)
            act(folder)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == 9
        kills += stride


def killed_folders(root: Path, function: Callable, *arguments) -> list[Path]:
    """Run a function that calls ``kill_before_each``; one folder for each kill."""
    run_in_process(function, root, *arguments)
    return sorted(root.iterdir(), key=lambda p: int(p.name))


def replace_entries(root: Path) -> None:
    kill_before_each(root, partial(make_all, seed=0), partial(make_all, seed=1))


@pytest.mark.slow
@FORKS
def test_killed_before_any_file_operation(tmp_path):
    """A process that replaces older entries is killed before each thing that it does to a file."""
    killed = killed_folders(tmp_path, replace_entries)
    assert len(killed) > 20
    made, set_aside = [], []
    for folder in killed:
        old = [p for p in folder.rglob("result.txt") if p.read_text().endswith(" 0")]
        new = [p for p in folder.rglob("result.txt") if p.read_text().endswith(" 1")]
        assert len(old) + len(new) >= 2  # an old result goes only when the new one stands
        aside = [int(p.name.split("_")[0][1:]) for p in folder.glob(".*-old")]
        made.append(make_all(folder, 1))
        assert not set(aside) & set(made[-1])  # the new one was complete
        set_aside += aside
        assert {p.name for p in folder.iterdir()} == {"00001_1", "00002_2"}
        for one in entries(folder, 1).values():
            assert one.is_there()
        assert make_all(folder, 1) == []
    assert set(set_aside) == {1, 2}
    # the later the kill, the less is left to do
    assert made == sorted(made, key=len, reverse=True)
    assert made[0] == [1, 2]
    assert made[-1] == []


def draw_steps(trace, mode, output, folder):
    (folder / f"{mode}_step_attention.png").write_text(str(trace.data.sizes["step"]))


def report(tokens: int, traces: Path, scene: Path, folder: Path) -> None:
    trend._draw = draw_steps
    trend.steps_table = lambda *_: pd.read_pickle(traces / f"{tokens}.pickle")
    question = Question(image=str(scene), text="How many?")
    trace = attnlens.Trace.load(traces / f"{tokens}.zarr")
    output = trend.TrendOutput(save_folder=str(folder), formats=("png",))
    trend.report_one(trace, question, RecordingSettings(mode="back"), output, folder / "scene")


def replace_answer(root: Path, traces: Path, scene: Path, old: Path) -> None:
    def act(folder: Path) -> None:
        report(5, traces, scene, folder)

    kill_before_each(root, partial(shutil.copytree, old), act, stride=31)


@pytest.mark.slow
@FORKS
def test_a_single_answers_files_are_never_of_two_answers(tmp_path, testbed):
    """Killed while a new answer replaces an old one: trace, table, summary and picture agree."""
    scene = Path(__file__).parents[1] / "demo_images" / "scene_1.png"
    for tokens in (4, 5):
        prompt = testbed.prompt(scene, "How many?", "back")
        trace = attnlens.run(testbed, prompt, tokens)
        trace.save(tmp_path / f"{tokens}.zarr")
        # measured once: each of the many processes needs it
        steps_table(trace).to_pickle(tmp_path / f"{tokens}.pickle")
    # each in a process of its own, since Zarr's threads do not survive a fork
    old = tmp_path / "old"
    run_in_process(report, 4, tmp_path, scene, old)
    (tmp_path / "killed").mkdir()
    killed = killed_folders(tmp_path / "killed", replace_answer, tmp_path, scene, old)
    assert len(killed) > 5
    found = []
    for folder in (one / "scene" for one in killed):
        clear_leftover_folders([folder])
        found.append(
            {
                json.loads((folder / "summary.json").read_text())["steps"],
                len(list(csv.DictReader((folder / "back_steps.csv").open(newline="")))),
                attnlens.Trace.load(folder / "back_trace.zarr").data.sizes["step"],
                int((folder / "back_step_attention.png").read_text()),
            }
        )
        assert {p.name for p in folder.parent.iterdir()} == {"scene"}
    assert found[0] == {4}
    assert found[-1] == {5}
    assert all(len(steps) == 1 for steps in found)
