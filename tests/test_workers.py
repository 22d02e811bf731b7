"""Several workers: any of them may be killed, and the results are those of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import unpainted_figures
from helpers_processes import context, killed_process

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.runs import cache, chunks
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.settings import PromptSettings
from attnlens.runs.workers import no_model, processes, start_workers
from attnlens.testbed import held_out_sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills and forks")

SETTINGS = PromptSettings(mode="cot", device="cpu")
COUNT = 4
QUESTIONS = [Question(f"{n}.png", f"How many {n}?", line=n) for n in range(1, COUNT + 1)]


def use(monkeypatch, found) -> None:
    """Start workers from this context: it need not import all libraries again."""
    parts = {"get_context": lambda _: found, "parent_process": multiprocessing.parent_process}
    monkeypatch.setattr(processes, "multiprocessing", SimpleNamespace(**parts))


@pytest.fixture
def quick(monkeypatch) -> None:
    use(monkeypatch, context())


def load_nothing(settings: PromptSettings):
    """Give what provenance asks for: these workers have no use for a model."""
    import torch

    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace()
    return SimpleNamespace(model=model, name=settings.model)


def write(question: Question, log: Path, vlm, folder: Path) -> None:
    """Say that it begins; kill this worker for line 2 always, and for line 3 once."""
    (folder / "result.txt").write_text(question.text)
    tries = log / str(question.line)
    with tries.open("a") as file:
        file.write("x")
    if question.line == 2 or (question.line == 3 and tries.stat().st_size == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if question.line == 4:
        raise ValueError("no such thing")


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, quick, capsys):
    """Its entry is made by another one, and given up after a second kill."""
    log = tmp_path / "log"
    log.mkdir()
    runs = [
        Run(
            q,
            None,
            Entry(tmp_path / "runs" / q.folder, {"question": q.text}),
            partial(write, q, log),
        )
        for q in QUESTIONS
    ]
    with start_workers(load_nothing, SETTINGS, count=2) as workers:
        there = make_each(runs, workers, command="test")
        assert [run.question.line for run in there] == [1, 3]
        said = capsys.readouterr().err
        assert "line 2 failed: its worker, process " in said
        assert ", was killed, and so was the one before" in said
        assert "line 4 failed: no such thing" in said
        assert len((log / "3").read_text()) == 2
        # one worker is enough to see that nothing is made again
        make_each(there, workers, command="test")
    tries = {one.line: len((log / str(one.line)).read_text()) for one in QUESTIONS}
    assert tries == {1: 1, 2: 2, 3: 2, 4: 1}
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {run.question.folder for run in there}  # a killed worker's leftovers are gone


def wait(vlm) -> None:
    os.write(1, b"at work\n")
    threading.Event().wait()


def hold() -> None:
    """Have a worker at work for good."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, multiprocessing.get_context("fork"))
        with processes.Processes(load_nothing, SETTINGS, 1) as workers:
            assert workers.model["name"] == "testbed"
            print(*workers.pids)
            list(workers.run([wait]))


def test_workers_end_with_a_killed_parent():
    with killed_process(hold) as printed:
        worker = os.pidfd_open(int(printed.readline()))
        assert printed.readline() == "at work\n"
        assert select.select([worker], [], [], 0)[0] == []
    assert select.select([worker], [], [], 60)[0] == [worker]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(3):
        sample = held_out_sample(3, i, "cot")
        sample.scene.draw().save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": sample.question.text})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "questions.jsonl"


def command(data: Path, out: Path, *more: str) -> list[str]:
    what = ["--intervention", "copy", "--when", "step:2", "--max_new_tokens", "5"]
    return ["recover", "--data", str(data), "--save_folder", str(out), *what, *more]


def check_same_results(data: Path, root: Path, monkeypatch, pids, *more: str) -> None:
    """Run the command in one process, and with workers of which one is killed at work."""
    with unpainted_figures():
        assert main(command(data, root / "one")) == 0
    print_line = cache._print
    killed = []

    def kill_first(*arguments) -> None:
        if not killed:  # the first question is done, and others are at work
            killed.append(pids()[-1])
            os.kill(killed[0], signal.SIGKILL)
        print_line(*arguments)

    monkeypatch.setattr(cache, "_print", kill_first)
    with unpainted_figures():
        assert main(command(data, root / "many", "--workers", "2", *more)) == 0
    assert killed
    tables = sorted((root / "one").rglob("*.parquet"))
    assert tables
    for table in tables:
        other = root / "many" / table.relative_to(root / "one")
        assert other.read_bytes() == table.read_bytes(), table.name
    for path in (root / "one").rglob("trace.zarr"):
        other = root / "many" / path.relative_to(root / "one")
        assert attnlens.Trace.load(other).data.equals(attnlens.Trace.load(path).data)


def test_results_are_those_of_one_process(data, tmp_path, monkeypatch, quick):
    def pids():
        return [one.pid for one in multiprocessing.active_children()]

    check_same_results(data, tmp_path, monkeypatch, pids)


def double(log: Path, numbers: list[int]) -> list[int]:
    """Kill this worker at 5 once; at a negative number, always."""
    tries = log / str(numbers[0])
    with tries.open("a") as file:
        file.write("x")
    if numbers[0] < 0 or (5 in numbers and tries.stat().st_size == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * number for number in numbers]


def test_chunks_keep_their_order_whoever_is_killed(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 3)
    log, out = tmp_path / "log", tmp_path / "out"
    log.mkdir()
    work = partial(chunks.in_chunks, function=partial(double, log), description="numbers")
    with start_workers(no_model, None, count=2) as workers:
        found = work(workers, items=list(range(10)), folder=out)
        assert list(found) == list(range(0, 20, 2))
        assert (log / "3").read_text() == "xx"
        with pytest.raises(InputError, match="was killed, and so was the one before"):
            list(work(workers, items=[-1], folder=out))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.slow
def test_twins_of_replays_are_made_by_workers(data, tmp_path, quick):
    lines = map(json.loads, data.read_text().splitlines())
    records = [{**line, "response": "One, two <back> three </back> 4."} for line in lines]
    path = data.with_name("answers.jsonl")
    path.write_text("\n".join(map(json.dumps, records)))
    asked = ["replay", "--data", str(path), "--intervention", "copy", "--intervention", "route:50"]
    for name, more in (("one", []), ("many", ["--workers", "2"])):
        with unpainted_figures():
            assert main([*asked, "--save_folder", str(tmp_path / name), *more]) == 0
    for name in ("replay_back_twins.parquet", "replay_back_recovery.csv"):
        one, many = (tmp_path / folder / name for folder in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()
    assert len([*(tmp_path / "many").rglob("back_interventions/*/*/trace.zarr")]) == 6


def test_a_model_that_cannot_be_loaded_is_said(quick):
    settings = PromptSettings(mode="cot", model="no/where")
    with (
        pytest.raises(InputError, match=r"a worker cannot load the model: .*no/where"),
        start_workers(PromptSettings.load, settings, count=2) as workers,
    ):
        assert workers.model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers 0: give at least 1"),
        (["--workers", "two"], "invalid int value: 'two'"),
    ],
)
def test_wrong_numbers_are_refused(options, message, data, tmp_path, capsys):
    status: object = None
    try:
        status = main(command(data, tmp_path, *options))
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_one_question_has_one_worker(capsys):
    asked = ["trend", "--image_path", "a.png", "--question", "What?"]
    assert main([*asked, "--workers", "2"]) == 2
    assert "--workers 2: one question has one worker: give --data" in capsys.readouterr().err
