"""The cache of runs: nothing is lost, doubled or stale, whatever interrupts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnlens.errors import InputError
from attnlens.runs.cache import Entry, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.provenance import canonical

QUESTIONS = [Question(f"{n}.png", f"How many {n}?", line=n) for n in (1, 2)]


def entries(folder: Path, seed: int) -> dict[Question, Entry]:
    return {
        one: Entry(folder / one.folder, {"question": one.text, "settings": {"seed": seed}})
        for one in QUESTIONS
    }


def make_all(folder: Path, seed: int) -> list[int | None]:
    """Make what is not there; the lines that were made."""
    made = []

    def make(question: Question, place: Path) -> None:
        made.append(question.line)
        (place / "result.txt").write_text(f"{question.text} {seed}")

    assert make_each(entries(folder, seed), make, command="test") == QUESTIONS
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


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_cache import make_all

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}
root = Path(sys.argv[1])
kills = 0
while True:
    folder = root / str(kills)
    make_all(folder, 0)
    child = os.fork()
    if child == 0:
        left = kills
        def hook(event, args):
            global left
            if event in OPERATIONS and str(folder) in str(args[0]):
                if left == 0:
                    os._exit(9)
                left -= 1
        sys.addaudithook(hook)
        make_all(folder, 1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    kills += 1
"""


@pytest.mark.skipif(not hasattr(sys, "addaudithook") or sys.platform == "win32", reason="forks")
def test_killed_before_any_file_operation(tmp_path):
    """A process that replaces older entries is killed before each thing that it does to a file."""
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), here, *sys.path], check=True)
    killed = sorted(tmp_path.iterdir(), key=lambda p: int(p.name))
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
