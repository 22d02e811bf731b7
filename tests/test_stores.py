"""Object stores: results there are those of a local folder, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas as pd
import pytest
import xarray as xr
from conftest import unpainted_figures
from helpers_s3 import s3_server

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.files import check_results, check_writable, scratch_folder, write_folder
from attnlens.models.images import open_image
from attnlens.reports import table
from attnlens.runs import chunks
from attnlens.runs.cache import SETTINGS, Entry, Run, make_each
from attnlens.runs.dataset import Question, read_questions
from attnlens.runs.settings import PromptSettings
from attnlens.runs.workers import OneProcess
from attnlens.stores import beside, files_in, is_store, local_copy, located, read_bytes
from attnlens.testbed import held_out_sample

COUNT = 2
SHORT = ("--max_new_tokens", "12")
TWINS = ("--intervention", "copy", "--when", "step:2")
STORES = "attnlens[stores]"


@pytest.fixture(scope="module", autouse=True)
def unpainted():
    """Give figures no content, which takes most of the time and no test looks at here."""
    with unpainted_figures():
        yield


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Start an object store of this machine, with a bucket."""
    pytest.importorskip("upath", reason=f"needs {STORES}")
    fs = pytest.importorskip("s3fs", reason=f"needs {STORES}").S3FileSystem
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "a")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        fs.clear_instance_cache()
        fs().mkdir("bucket")
        yield "s3://bucket"
        fs.clear_instance_cache()


@pytest.fixture(params=["memory", "s3"])
def store(request, tmp_path) -> str:
    """Name a folder of a store that no other test uses."""
    pytest.importorskip("upath", reason=f"needs {STORES}")
    root = "memory://bucket" if request.param == "memory" else request.getfixturevalue("bucket")
    return f"{root}/{tmp_path.name}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Write questions, answers to them, and their pictures."""
    folder = tmp_path_factory.mktemp("data")
    asked, answered = [], []
    for i in range(COUNT):
        sample = held_out_sample(3, i, "back")
        sample.scene.draw().save(folder / f"{i} [a].png")
        one = {"image": f"{i} [a].png", "question": sample.question.text}
        one["answer"] = sample.question.answer
        asked.append(json.dumps(one))
        boxed = one["answer"] if i else "none"  # one is right
        said = f"<back>{i} red squares</back> \\boxed{{{boxed}}}"
        answered.append(json.dumps({**one, "response": said}))
    (folder / "questions.jsonl").write_text("\n".join(asked))
    (folder / "answers.jsonl").write_text("\n".join(answered))
    return folder


def run(name: str, data: Any, out: Any, *more: str) -> int:
    options = {
        "trend": ("--data", f"{data}/questions.jsonl", *SHORT),
        "replay": ("--data", f"{data}/answers.jsonl"),
        "recover": (
            *("--data", f"{data}/questions.jsonl", *SHORT),
            *("--when", "step:3", "--intervention", "copy"),
        ),
        "dilution": (
            *("--data", f"{data}/questions.jsonl", *SHORT),
            *("--between", "0%-50%", "50%-100%", "--samples", "1", "--insertion"),
        ),
    }[name]
    return main([name, *options, "--save_folder", str(out), *more])


@pytest.fixture(scope="module")
def local(data, tmp_path_factory) -> Path:
    """Results of both commands in a local folder."""
    folder = tmp_path_factory.mktemp("local")
    assert run("trend", data, folder) == run("replay", data, folder, *TWINS) == 0
    return folder


def put(folder: Path, target: str) -> None:
    for path in folder.iterdir():
        (located(target) / path.name).write_bytes(path.read_bytes())


def states(folder: str) -> dict[str, Any]:
    """Content of every note on what an entry follows from, with the random name of its results."""
    root = located(folder)
    return {n: read_bytes(root / n) for n in files_in(root) if n.endswith(SETTINGS)}


def names_without_runs(names) -> set[str]:
    return {name for name in names if ".zarr" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trend", "replay"])
def test_results_in_a_store_are_those_of_a_local_folder(name, store, data, local, capsys):
    twins = TWINS if name == "replay" else ()
    assert run(name, data, store, *twins) == 0
    there = located(store)
    tables = ["back_steps.parquet"]
    if twins:
        tables = [f"replay_{one}" for one in (*tables, "back_twins.parquet")]
        tables.append("replay_back_recovery.csv")
    for one in tables:
        assert read_bytes(there / one) == (local / one).read_bytes()
    runs = local / f"{name}_runs" / "back"
    for folder in sorted(runs.iterdir()):
        traces = [
            attnlens.Trace.load(f"{root}/{name}_runs/back/{folder.name}/trace.zarr").data
            for root in (store, local)
        ]
        for trace in traces:
            trace.attrs.pop("intervention", None)  # of a replay it has the address of an object
        xr.testing.assert_identical(*traces)
        summary = Path(name) / "back" / folder.name / "summary.json"
        found, wanted = (
            json.loads(read_bytes(root / summary.as_posix())) for root in (there, local)
        )
        found["settings"]["save_folder"] = wanted["settings"]["save_folder"]
        for one in (found, wanted):
            one["provenance"].pop("intervention", None)
        assert found == wanted
    wanted = {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()}
    mine = {n for n in wanted if n.split("/")[0] in (name, f"{name}_runs", *tables)}
    assert set(files_in(there)) == mine

    before = states(store)
    assert len(before) == (3 if twins else 2) * COUNT
    capsys.readouterr()
    assert run(name, data, store, *twins) == 0
    assert "2 of 2 questions were done before" in capsys.readouterr().err
    assert states(store) == before


@pytest.mark.slow
def test_what_is_missing_or_cut_is_made_again(store, data, local, capsys):
    assert run("replay", data, store) == 0
    runs = located(store) / "replay_runs" / "back"
    first, second = sorted(runs.iterdir())
    first.fs.rm_file((first / "trace.zarr" / "mass" / ".zarray").path)
    path = second / "trace.zarr" / ".zmetadata"
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert run("replay", data, store) == 0
    assert "2 of 2 questions are there in part or damaged" in capsys.readouterr().err
    name = "replay_back_steps.parquet"
    assert read_bytes(located(store) / name) == (local / name).read_bytes()
    # of the same size, but with another content: found when it is read
    content = (first / "trace.zarr" / ".zmetadata").read_bytes()
    (first / "trace.zarr" / ".zmetadata").write_bytes(content[::-1])
    assert run("replay", data, store, "--definition", "mass") == 2
    said = capsys.readouterr().err
    assert f"{str(first / 'trace.zarr')!r} is damaged" in said
    assert "Give the same command again" in said
    assert run("replay", data, store, "--definition", "mass") == 0


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_questions_answers_and_pictures_may_be_in_a_store(store, data, local, capsys):
    put(data, f"{store}/in")
    out = f"{store}/out"
    assert run("trend", f"{store}/in", out) == run("replay", f"{store}/in", out) == 0
    assert run("replay", data, f"{out}/2", "--images", f"{store}/in") == 0
    for name in ("back_steps.parquet", "replay_back_steps.parquet", "2/replay_back_steps.parquet"):
        with local_copy(located(out) / name) as copy:
            found = pd.read_parquet(copy)
        wanted = pd.read_parquet(local / Path(name).name)
        assert found["image"].unique().tolist() == [f"{store}/in/{i} [a].png" for i in range(COUNT)]
        pd.testing.assert_frame_equal(found.drop(columns="image"), wanted.drop(columns="image"))
    trace = attnlens.Trace.load(f"{out}/trend_runs/back/00001_0 [a]/trace.zarr")
    assert trace.attrs["images"][0]["path"] == f"{store}/in/0 [a].png"

    for file in (f"{store}/in/answers.jsonl", f"{out}/replay/back", f"{out}/trend/back"):
        assert main(["score", file, "--save_folder", out]) == 0
        assert "2 answers" in capsys.readouterr().out
    assert "score/score.json" in files_in(located(out))
    assert main(["score", out, "--save_folder", out]) == 2
    assert "several modes: give one of trend/back, replay/back" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "store"), [("recover", "s3"), ("dilution", "memory")], indirect=["store"]
)
def test_recover_and_dilution_write_into_a_store(name, store, data, tmp_path, capsys):
    for place in (tmp_path / "out", store):
        assert run(name, data, place) == 0
    wanted = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert set(files_in(located(store))) == {path.as_posix() for path in wanted}
    folder = {"recover": "batch_recovery", "dilution": "dilution"}[name]
    for file in ("steps.parquet", *(["by_head.csv"] if name == "dilution" else [])):
        found = read_bytes(located(store) / folder / file)
        assert found == (tmp_path / "out" / folder / file).read_bytes()
    before = states(store)
    more = ("--samples", "2") if name == "dilution" else ()  # the first one is taken over
    assert run(name, data, store, *more) == 0
    changed = {n.split("/")[1] for n, content in states(store).items() if content != before[n]}
    assert changed == ({"cot_answers"} if more else set())


@pytest.mark.slow
def test_a_single_question_keeps_what_other_modes_left(store, data, capsys):
    question = json.loads((data / "questions.jsonl").read_text().splitlines()[0])
    asked = ("--image_path", str(data / question["image"]), "--question", question["question"])
    for mode in ("cot", "back"):
        assert main(["trend", *asked, "--mode", mode, *SHORT[:1], "4", "--save_folder", store]) == 0
    names = set(files_in(located(store) / "0 [a]"))
    assert {"cot_steps.csv", "back_steps.csv", "summary.json"} <= names


QUESTIONS = [Question(f"{n} [a].png", f"How many {n}?", line=n) for n in (1, 2)]


def write(content: str, vlm: None, folder: Path) -> None:
    for i in range(3):
        (folder / f"{i}.zarr").mkdir()
        (folder / f"{i}.zarr" / "0").write_text(f"{content} {i}")


class Write:
    """Write three files."""

    def __init__(self, content: str) -> None:
        self.content = content

    def __call__(self, vlm: None, folder: Path) -> None:
        write(self.content, vlm, folder)


def runs_in(folder: Path, seed: int) -> list[Run]:
    settings = PromptSettings(mode="cot")
    return [
        Run(
            question,
            settings,
            Entry(folder / question.folder, {"question": question.text, "seed": seed}),
            Write(f"{seed} {question.line}"),
        )
        for question in QUESTIONS
    ]


class Killed(BaseException):
    """What no code of ours catches."""


class Dying:
    """Lets a store write and remove so many files, and then kills."""

    def __init__(self, patch: pytest.MonkeyPatch, path: Any, left: int) -> None:
        self.left = left
        for name in ("put_file", "_put_file", "pipe_file", "rm_file"):
            if hasattr(path.fs, name):  # put() of an asynchronous one calls _put_file
                patch.setattr(path.fs, name, self.dying(getattr(path.fs, name)))

    def dying(self, method):
        def call(*arguments, **options):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return method(*arguments, **options)

        return call


def content(folder: Path) -> dict[str, bytes]:
    return {n: read_bytes(folder / n) for n in files_in(folder) if n != SETTINGS}


@pytest.mark.slow
def test_nothing_half_written_is_taken_for_whole(store, capsys):
    """Killed at each write in turn, while entries are made and while they are replaced."""
    make_each(runs_in(located(f"{store}/whole"), 1), OneProcess(None), command="test")
    whole = {q.line: content(located(store) / "whole" / q.folder) for q in QUESTIONS}
    assert whole[1]["2.zarr/0"] == b"1 1 2"
    kills = 0
    for replaced in (False, True):
        for left in range(0, 100, 1 if store.startswith("memory") else 3):
            folder = located(f"{store}/{replaced}/{left}")
            if replaced:
                make_each(runs_in(folder, 0), OneProcess(None), command="test")
            with pytest.MonkeyPatch.context() as patch:
                Dying(patch, folder, left)
                try:
                    make_each(runs_in(folder, 1), OneProcess(None), command="test")
                except Killed:
                    kills += 1
                else:
                    break
            for run in runs_in(folder, 1):
                if run.entry.has_key():
                    assert content(run.entry.folder) == whole[run.question.line]
            capsys.readouterr()
            make_each(runs_in(folder, 1), OneProcess(None), command="test")
            for run in runs_in(folder, 1):
                assert run.entry.has_key()
                assert content(run.entry.folder) == whole[run.question.line]
            assert {path.name for path in folder.iterdir()} == {q.folder for q in QUESTIONS}
    writes = 2 * (1 + 3 + 1 + 1)  # of two entries: the note, the files, settings.json, the note
    assert kills >= (2 * writes if store.startswith("memory") else 2 * writes // 3)


def test_a_killed_report_is_written_again(store):
    folder = located(store) / "score"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Dying(patch, folder, 3)
        with write_folder(folder, replace=True) as temporary:
            for name in ("a.csv", "b.csv", "score.json"):
                (temporary / name).write_text(name)
    # of files that are sent together, all may be lost with one
    assert files_in(folder) or store.startswith("s3")
    check_results(folder, "score.json", "scores")
    with write_folder(folder, replace=True) as temporary:
        (temporary / "score.json").write_text("{}")
    assert set(files_in(folder)) == {"score.json"}
    (folder / "thesis.txt").write_text("mine")
    (folder / "score.json").unlink()
    with pytest.raises(InputError, match="holds something other than scores"):
        check_results(folder, "score.json", "scores")


def test_a_scratch_folder_is_empty_and_is_removed(store):
    beside = located(store) / "score"
    with scratch_folder(beside) as folder:
        (folder / "0.json").write_text("[]")
    assert not files_in(located(store))
    (folder / "1.json").write_text("[]")  # as a killed process leaves it
    with scratch_folder(beside) as folder:
        assert not files_in(folder)


def test_what_is_no_result_is_not_removed(store):
    folder = located(store) / QUESTIONS[0].folder
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than the results of a question"):
        make_each(runs_in(located(store), 0), OneProcess(None), command="test")
    assert files_in(folder) == {"thesis.txt": 4}


def test_tables_of_many_answers_are_folders_of_files(store, monkeypatch):
    monkeypatch.setattr(table, "PART", 2)
    path = located(store) / "back_steps.parquet"
    for count, names in ((5, {f"part-{i:05d}.parquet" for i in range(3)}), (2, {""}), (3, None)):
        frames = [pd.DataFrame({"line": [i]}) for i in range(count)]
        table.write_parts(path, iter(frames), count)
        if names is not None:
            assert set(files_in(path)) == names
        with local_copy(path) as copy:
            assert pd.read_parquet(copy)["line"].tolist() == list(range(count))
    assert len(files_in(path)) == 2


def test_what_another_process_writes_is_seen(bucket, tmp_path):
    from s3fs import S3FileSystem

    folder = located(f"{bucket}/{tmp_path.name}")
    (folder / "a").write_text("1")
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert set(files_in(folder)) == {"a"}
    S3FileSystem(skip_instance_cache=True).pipe_file((folder / "b").path, b"2")
    assert (folder / "b").exists()
    assert set(files_in(folder)) == {"a", "b"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as the other tests of workers")
def test_workers_share_a_store(bucket, data, local, tmp_path, monkeypatch, capsys):
    out = f"{bucket}/{tmp_path.name}"
    assert run("replay", data, out, *TWINS, "--workers", "2") == 0
    for name in ("replay_back_steps.parquet", "replay_back_twins.parquet"):
        assert read_bytes(located(out) / name) == (local / name).read_bytes()
    before = states(out)
    assert run("replay", data, out, *TWINS) == 0
    assert states(out) == before

    monkeypatch.setattr(chunks, "CHUNK", 1)
    for folder, more in (("one", ()), ("many", ("--workers", "2"))):
        options = ("--save_folder", f"{out}/{folder}", *more)
        assert main(["score", f"{out}/replay/back", *options]) == 0
    one, many = (located(out) / folder for folder in ("one", "many"))
    assert json.loads(read_bytes(one / "score" / "score.json"))["attention"]
    assert set(files_in(one)) == set(files_in(many))  # nothing is left over
    for name in files_in(one):
        if not name.endswith("score.json"):
            assert read_bytes(one / name) == read_bytes(many / name), name


@pytest.mark.parametrize("more", [("--workers", "2"), ("--ray", "local")])
def test_memory_of_one_process_has_one_worker(more, data, capsys):
    answers = str(data / "answers.jsonl")
    for options in (
        ("replay", "--data", answers, "--save_folder", "memory://a"),
        ("replay", "--data", "memory://a/answers.jsonl"),
        ("replay", "--data", answers, "--images", "memory://a"),
        ("score", "memory://a"),
        ("score", answers, "--traces", "memory://a"),
    ):
        assert main([*options, *more]) == 2
        assert "the memory of one process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_refused_at_once(bucket, data, capsys, monkeypatch):
    def loaded(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("attnlens.models.load.load", loaded)
    answers, missing = str(data / "answers.jsonl"), "s3://no-such-bucket/x"
    for options in (
        ("replay", "--data", answers, "--save_folder", missing),
        ("replay", "--data", f"{missing}/answers.jsonl", "--save_folder", f"{bucket}/refused"),
        ("replay", "--data", answers, "--images", missing, "--save_folder", f"{bucket}/refused"),
        ("trend", "--data", str(data / "questions.jsonl"), "--save_folder", missing),
        ("recover", "--data", str(data / "questions.jsonl"), "--intervention", "copy",
         "--save_folder", missing),
        ("dilution", "--data", str(data / "questions.jsonl"), "--save_folder", missing),
        ("score", answers, "--save_folder", missing),
        ("score", missing, "--save_folder", f"{bucket}/refused"),
        ("trend", "--image_path", f"{missing}/a.png", "--question", "What?"),
    ):  # fmt: skip
        assert main([*options]) == 2, options
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1, options
        assert missing in said[0]
    assert not files_in(located(f"{bucket}/refused"))


def test_without_the_extra_the_command_says_what_to_install(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    answers = str(data / "answers.jsonl")
    assert main(["replay", "--data", answers, "--save_folder", "s3://bucket/x"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("'s3://bucket/x' is in an object store: pip install attnlens[stores]")
    check_writable(located(str(data)))  # local paths do without


def test_local_paths_are_told_from_urls(tmp_path):
    for text in ("a", "./a", "/a/b", "C:/a", "C:\\a", "c://a", "a:b", "a b/c", "data:x"):
        path = located(text)
        assert isinstance(path, Path)
        assert path == Path(text)
        assert not is_store(path)
    assert not is_store(PureWindowsPath("C:/a"))
    assert located((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    for text in ("https://x.org/a", "HTTP://x.org/a", "ftp://x.org/a"):
        with pytest.raises(InputError, match="is on the network"):
            located(text)
    pytest.importorskip("upath", reason=f"needs {STORES}")
    with pytest.raises(InputError, match="'nosuch://a/b' cannot be opened: ValueError: "):
        located("nosuch://a/b")
    folder = located("memory://a/b")
    assert is_store(folder)
    assert located(folder) is folder
    assert beside(folder, "../c d.png") == "memory://a/c d.png"
    assert beside(folder, str(tmp_path / "c.png")) == str(tmp_path / "c.png")
    assert beside(folder, "data:,c") == "data:,c"
    assert beside(tmp_path, "../c.png") == str(tmp_path / "../c.png")
    assert beside(tmp_path, "memory://a/c.png") == "memory://a/c.png"


@pytest.mark.slow
def test_nothing_is_imported_for_local_paths(data):
    from helpers_processes import run_in_process

    run_in_process(_reads_locally, str(data / "questions.jsonl"))


def _reads_locally(path: str) -> None:
    for name in ("upath", "s3fs", "aiobotocore"):
        sys.modules.pop(name, None)
    assert len(read_questions(path)) == COUNT
    assert not {"upath", "s3fs", "aiobotocore"} & set(sys.modules)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside"])
def test_no_file_of_a_store_lands_outside_of_its_copy(name, monkeypatch):
    """Stores may have such names; clients differ in which of them they list as they are."""
    pytest.importorskip("upath", reason=f"needs {STORES}")
    monkeypatch.setattr("attnlens.stores.files_in", lambda _: {"inside": 1, name: 1})
    with (
        pytest.raises(InputError, match="which is no file in it"),
        local_copy(located("memory://a")),
    ):
        pass


def test_pictures_and_questions_of_a_store_that_are_not_there(store):
    with pytest.raises(InputError, match=r"cannot be reached \(FileNotFoundError"):
        open_image(f"{store}/a.png")
    with pytest.raises(InputError, match=r"cannot be reached \(FileNotFoundError"):
        read_questions(f"{store}/a.jsonl")
    with pytest.raises(InputError, match=r"cannot be reached \(FileNotFoundError"):
        attnlens.Trace.load(f"{store}/a.zarr")
    (located(store) / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="is not a picture"):
        open_image(f"{store}/a.png")


def test_videos_of_a_store_are_refused(store):
    from attnlens.models.videos import Video, open_video

    with pytest.raises(InputError, match="but no videos: download it"):
        open_video(Video(f"{store}/a.mp4"))
