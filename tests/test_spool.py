"""Questions and answers that are kept on disk: the same items, and little memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.errors import InputError
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question, read_questions, spool_questions
from attnlens.runs.responses import Asked, Response, read_responses
from attnlens.runs.responses.base import spool_responses
from attnlens.runs.spool import Lazy
from attnlens.runs.workers.base import OneProcess

texts = st.text(st.characters(exclude_categories=()), max_size=5)  # halves of characters, too
questions = st.builds(Question, texts, texts, st.none() | texts, st.none() | st.integers(1), texts)


@given(st.lists(questions))
def test_questions_come_back_as_they_were(many):
    kept = spool_questions(many)
    assert list(kept) == many
    assert list(zip(kept, kept, strict=True)) == list(zip(many, many, strict=True))
    assert [kept[place] for place in range(-len(many), len(many))] == many * 2
    with pytest.raises(IndexError):
        kept[len(many)]
    kept.append(Question("a", "b"))
    assert len(kept) == len(many) + 1
    assert Question("a", "b") in kept


@given(questions, st.none() | st.lists(st.integers(0)), texts, st.none() | st.booleans())
def test_responses_come_back_as_they_were(question, ids, text, finished):
    asked = Asked(mode=text, messages=[{"role": "user", "content": [{"type": "image"}]}])
    fields = {text: [None, True, 1, 2.5, {"a": text}]}
    ids = None if ids is None else tuple(ids)
    one = Response(question, text, ids, text, asked, fields, finished, text)
    other = Response(question, "")
    assert list(spool_responses([one, other])) == [one, other]


def held() -> int:
    """How many questions, answers and runs are in memory."""
    gc.collect()
    return sum(isinstance(one, (Question, Response, Run)) for one in gc.get_objects())


@pytest.mark.parametrize("read", [read_questions, read_responses])
def test_the_lines_of_a_file_are_not_held_in_memory(read, tmp_path):
    path = tmp_path / "questions.jsonl"
    one = json.dumps({"image": "a.png", "question": "Why?", "response": "So."})
    path.write_text(f"{one}\n" * 200, encoding="utf-8")
    before = held()
    found = read(path)
    kept = getattr(found, "responses", found)
    assert held() - before < 5
    for _ in kept:
        pass
    assert (len(kept), held() - before < 5) == (200, True)


def test_runs_are_not_held_in_memory(tmp_path):
    found = []

    def note(vlm: None, folder: Path) -> None:
        (folder / "result.txt").touch()
        found.append(held())

    def run_of(line: int) -> Run:
        question = Question("x.png", f"{line}?", line=line)
        return Run(question, None, Entry(tmp_path / question.folder, {"line": line}), note)

    runs = Lazy(lambda: map(run_of, range(40)), 40)
    there = make_each(runs, OneProcess(None), command="test")
    assert [run.question.line for run in there] == list(range(40))
    assert len(found) == 40
    assert max(found) - min(found) < 5


def test_a_full_disk_is_one_error(monkeypatch):
    kept = spool_questions()
    monkeypatch.setattr(kept, "_file", open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(InputError, match="set TMPDIR to a folder with room"):
        kept.append(Question("a", "b"))
    kept._file.close()
