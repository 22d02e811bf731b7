"""Scores of answers, and attention beside correctness."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from conftest import unpainted_figures
from helpers_traces import FakeRegion, FakeTrace, planted_dataset
from test_workers import quick  # noqa: F401 (a fixture)

from attnlens import plots
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.measures.correctness import correctness
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.scores import chair, hallusionbench, mme, pope
from attnlens.measures.scores.chair import mentions
from attnlens.measures.scores.mme import COGNITION, PERCEPTION, says
from attnlens.measures.scores.pope import says_yes
from attnlens.measures.statistics import mean_interval, superiority
from attnlens.progress import progress
from attnlens.recording.trace import Trace
from attnlens.reports.table import print_unjudged, steps_table
from attnlens.runs import chunks
from attnlens.runs.dataset import Question

Z = 1.959963984540054


def wilson(right: int, of: int) -> tuple[float, float]:
    """Written out from Wilson (1927)."""
    p, shrunk = right / of, 1 + Z**2 / of
    half = Z * sqrt(p * (1 - p) / of + Z**2 / (4 * of**2)) / shrunk
    middle = (p + Z**2 / (2 * of)) / shrunk
    return middle - half, middle + half


def test_pope_counts_yes_and_no():
    # 30 questions: 9 hits, 4 false alarms, 6 misses, 11 correct rejections
    said = [True] * 13 + [False] * 17
    true = [True] * 9 + [False] * 4 + [True] * 6 + [False] * 11
    found = pope(said, true)
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (9, 4, 6, 11)
    for name, right, of in (
        ("accuracy", 20, 30),
        ("precision", 9, 13),
        ("recall", 9, 15),
        ("yes_share", 13, 30),
    ):
        low, high = wilson(right, of)
        assert found[name] == pytest.approx(
            {"mean": right / of, "low": low, "high": high, "count": of}
        )
    precision, recall = 9 / 13, 9 / 15
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    nothing = pope([False], [False])
    assert nothing["f1"] is None
    assert nothing["precision"]["mean"] is None
    texts = {"Yes.": True, "No, there": False, "It is not. Yes": False, "Nothing": True}
    assert {text: says_yes(text) for text in texts} == texts


OBJECTS = {
    "dog": ["puppy"],
    "hot dog": [],
    "dog sled": [],
    "person": ["woman", "child"],
    "bus": [],
    "berry": [],
}


def test_chair_counts_mentions_and_texts():
    text = "Puppies and a Dog eat hot dogs on dog  sleds and buses; children pick berries; doghouse"
    objects = OBJECTS | {"person": ["woman", "child", "children"]}
    named = ["dog", "dog", "hot dog", "dog sled", "bus", "person", "berry"]
    assert mentions(text, objects) == named
    assert mentions(text, {}) == []
    texts = ["a dog and a dog and a bus", "a puppy", "nothing", "a woman on a bus"]
    found = chair(texts, [["dog"], ["puppy"], [], ["child"]], OBJECTS)
    assert found["chair_i"]["mean"] == 2 / 6
    assert found["chair_i"]["count"] == 6
    assert found["chair_s"]["mean"] == 2 / 4
    assert found["absent"] == {"bus": 2}
    many = chair(texts * 10, [["dog"], ["puppy"], [], ["child"]] * 10, OBJECTS)
    assert 0 < many["chair_i"]["low"] < 2 / 6 < many["chair_i"]["high"] < 1
    assert (many["chair_s"]["low"], many["chair_s"]["high"]) == pytest.approx(wilson(20, 40))
    with pytest.raises(InputError, match="'cat' is not in the list"):
        chair(["a"], [["cat"]], OBJECTS)


def hallusion(category, figure, question):
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return dict(zip(names, (category, "map", "0", figure, question), strict=True))


def test_hallusionbench_counts_questions_figures_and_pairs():
    questions = [hallusion("VD", f, q) for f in ("0", 1) for q in ("0", "1", "2")]
    questions += [hallusion("VS", f, q) for f in ("0", "1") for q in ("0", "1")]
    right = [True, True, True, True, False, True, True, False, True, True]
    found = hallusionbench(right, questions)
    # figures: VD 0 right, VD 1 not, VS 1 right; VS 0 is none. Pairs: VD 0 and 2, VS 0
    assert {name: (one["mean"], one["count"]) for name, one in found.items()} == {
        "aAcc": (0.8, 10),
        "fAcc": (2 / 3, 3),
        "qAcc": (3 / 5, 5),
    }
    with pytest.raises(InputError, match="comes twice"):
        hallusionbench([True, True], [questions[0]] * 2)
    with pytest.raises(InputError, match="no 'set_id'"):
        hallusionbench([True], [{"category": "VD", "subcategory": "map"}])


def test_mme_adds_accuracy_and_accuracy_plus():
    found = mme(
        [True, True, True, False, False, False, True, True],
        ["count"] * 6 + ["code_reasoning"] * 2,
        ["a", "a", "b", "b", "c", "c", "a", "a"],
    )
    assert found["categories"]["count"]["score"] == pytest.approx(100 * (3 / 6 + 1 / 3))
    assert found["perception"] == pytest.approx(100 * (3 / 6 + 1 / 3))
    assert found["cognition"] == 200
    assert len(found["missing"]) == len(PERCEPTION) + len(COGNITION) - 2
    assert [says(text) for text in (" Yes.", "no", "It is yes", "NO!")] == ["yes", "no", "", "no"]
    with pytest.raises(InputError, match="1 answer about 'a' in 'count'"):
        mme([True], ["count"], ["a"])
    with pytest.raises(InputError, match="'counting' is none"):
        mme([True], ["counting"], ["a"])


@pytest.mark.parametrize("shift", [0.0, 0.7, 50.0])
def test_superiority_inverts_hanley_and_mcneils_variance(shift):
    rng = np.random.default_rng(0)
    first, second = rng.normal(shift, 1, 11).round(1), rng.normal(0, 2, 17).round(1)
    found, low, high, p_value = superiority(first, second, 0.95)
    over = (first[:, None] > second).mean() + (first[:, None] == second).mean() / 2
    assert found == pytest.approx(over)
    middle = (11 + 17) / 2 - 1

    def variance(at):
        one, other = at / (2 - at), 2 * at**2 / (1 + at)
        return (at * (1 - at) + middle * (one + other - 2 * at**2)) / (11 * 17)

    for end in (low, high):
        if end < 1:
            assert abs(found - end) == pytest.approx(Z * sqrt(variance(end)), abs=1e-9)
    assert low < 0.98
    assert (p_value < 0.001) == (shift == 50)
    assert superiority(second, first, 0.95)[:3] == pytest.approx((1 - found, 1 - high, 1 - low))
    assert np.isnan(superiority(first[:7], second, 0.95)[1:]).all()
    same = superiority(np.ones(8), np.ones(8), 0.95)
    assert (same[0], same[3]) == (0.5, 1.0)


def runs(shift: float, count: int = 32, steps: int = 12):
    """Traces whose visual mass inside <back> is higher by ``shift`` where the answer is right."""
    rng = np.random.default_rng(1)
    regions = [FakeRegion("back", 4, 8)]
    for i in range(count):
        right = i % 2 == 0
        visual = rng.uniform(0.2, 0.4, steps)
        visual[4:8] += shift * right
        yield FakeTrace(planted_dataset(visual, regions=regions), regions), right


@pytest.fixture(scope="module")
def planted():
    return correctness(runs(0.3))


def test_attention_beside_correctness_finds_what_was_planted(planted):
    found = planted
    assert (found.right, found.wrong) == (16, 16)
    assert set(found.regions["definition"]) == set(DEFINITIONS)
    table = found.regions.set_index(["definition", "region"])
    assert table.loc[("mass", "back"), "relation"] == "higher when right"
    assert table.loc[("mass", "outside"), "relation"] == "not known"
    by_hand = [
        float(trace.data["mass"].sel(segment="visual").mean(("layer", "head"))[4:8].mean())
        for trace, right in runs(0.3)
        if right
    ]
    row = table.loc[("mass", "back")]
    assert row["right_mean"] == pytest.approx(np.mean(by_hand))
    assert (row["right_low"], row["right_high"]) == pytest.approx(
        mean_interval(np.array(by_hand), 0.95), rel=1e-6
    )
    step = found.steps.set_index(["definition", "step"]).loc[("mass", 5)]
    assert step["superiority"] > 0.9
    # look-back owns step t by the token fed in: the region is a step later
    assert found.steps.query("definition == 'look-back'")["step"].min() == 1
    assert json.loads(json.dumps(found.as_dict()))["regions"]


def test_no_relation_is_said_where_there_are_enough_answers():
    both = ((trace, right) for trace, _ in runs(0.0, count=70) for right in (True, False))
    found = correctness(both, names=["mass"])
    assert set(found.regions["relation"]) == {"none"}
    assert len(correctness(runs(0.0, count=10), names=["mass"]).steps) == 0
    with pytest.raises(InputError, match="16 right and 0 wrong"):
        correctness((trace, right) for trace, right in runs(0.0) if right)


def test_the_figure_says_how_many_relations_there_are(planted):
    with unpainted_figures():
        figure = plots.correctness(planted, "look-back", width="one-column")
    text = " ".join(" ".join(t.get_text() for t in figure.texts).split())
    assert "16 right and 16 wrong answers" in text
    assert "look-back = " in text
    left, right = figure.axes
    assert len(left.containers) == 3  # all, back, outside
    assert len(right.lines) == 2
    with pytest.raises(InputError, match="'mass' is not in this result"):
        plots.correctness(correctness(runs(0.3, count=4), names=["no-sink"]))
    with pytest.raises(InputError, match="dict was given"):
        plots.correctness({})


def write(path, records):
    path.write_text("\n".join(json.dumps(one) for one in records))
    return path


def score(*arguments, folder):
    return main(["score", *map(str, arguments), "--save-folder", str(folder)])


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Files of answers to the same questions: a plain one, and Look-Back's."""
    folder = tmp_path_factory.mktemp("answers")
    plain = [
        {"image": f"{i}.png", "question": f"q{i}", "answer": "6", "response": r"\boxed{6}"}
        for i in range(20)
    ]
    for i in (0, 1, 2, 3, 4, 5):
        plain[i]["response"] = "\x1b[31m7"
    plain[6] |= {"answer": "A", "response": r"\boxed{BANANA}"}
    plain[7] |= {"answer": "1+2x", "response": r"\boxed{2x+1}"}
    results = [
        {"id": n, "question": one["question"], "answer": one["answer"], "prediction": "none"}
        for n, one in enumerate(plain, 1)
    ]
    for one, other in zip(results, plain, strict=True):
        one["prediction"] = other["response"]
    results[0]["prediction"] = r"\boxed{6}"
    look_back = folder / "mathvista.json"
    look_back.write_text(json.dumps({"results": results, "config": {"version": "back"}}))
    return write(folder / "plain.jsonl", plain), look_back


def test_score_judges_compares_and_counts(answers, tmp_path, capsys):
    plain, look_back = answers
    assert score(look_back, "--rule", "look-back", "--against", plain, folder=tmp_path) == 0
    found = json.loads((tmp_path / "score" / "score.json").read_text())
    assert found["rules"]["look-back"]["right"]["mean"] == 15 / 20
    assert found["rules"]["attnlens"]["right"]["mean"] == 14 / 20
    assert found["differences"] == [
        {
            "step_look_back": "letter",
            "step_attnlens": "text",
            "right_look_back": True,
            "right_attnlens": False,
            "answers": 1,
        }
    ]
    against = found["against"]
    assert (against["answers"], against["only_here"], against["only_there"]) == (20, 1, 0)
    assert against["difference"] == pytest.approx(1 / 20)
    table = pd.read_parquet(tmp_path / "score" / "answers.parquet")
    assert table["right"].sum() == 15
    assert table["right_attnlens"].sum() == 14
    assert table["answer"][6] == "BANANA"
    printed = capsys.readouterr().out
    assert "75.00% [53.1%, 88.8%] of 20" in printed
    assert "the rules differ on 1 answer" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("benchmark", "record", "key", "value"),
    [
        ("pope", {"label": "yes", "response": "Yes, it is."}, "f1", 1.0),
        ("mme", {"answer": "Yes", "category": "OCR", "response": "yes"}, "perception", 200.0),
        (
            "hallusionbench",
            hallusion("VD", "1", "0") | {"gt_answer": "1", "response": "Yes."},
            "qAcc",
            {"mean": 1.0, "low": None, "high": None, "count": 2},
        ),
        ("chair", {"objects": ["dog"], "response": "A cat and a dog."}, "absent", {"cat": 2}),
    ],
)
def test_benchmarks_read_their_own_fields(benchmark, record, key, value, tmp_path):
    both = [
        {"image": "a.png", "question": "q", **record},
        {"image": "a.png", "question": "q", **record},
    ]
    if benchmark == "hallusionbench":
        both[1]["question_id"] = "1"
    file = write(tmp_path / "answers.jsonl", both)
    options = ["--benchmark", benchmark]
    if benchmark == "chair":
        (tmp_path / "objects.txt").write_text("dog, puppy\ncat\n")
        options += ["--objects", tmp_path / "objects.txt"]
    assert score(file, *options, folder=tmp_path) == 0
    found = json.loads((tmp_path / "score" / "score.json").read_text())
    assert found["benchmark"][key] == value


def write_recorded(root):
    """A folder as ``attnlens trend --data`` writes it; the last trace is of another answer."""
    for n, (trace, right) in enumerate(runs(0.3, count=18, steps=10), 1):
        data = trace.data
        data["predicted_token"] = ("step", [*"abcd", "<back>", *"ef", "</back>", "g", r"\boxed{6}"])
        folder = root / "trend_runs" / "back" / f"{n:05d}_p"
        Trace(data).save(folder / "trace.zarr")
        (folder / "settings.json").write_text(json.dumps({"settings": {"question": f"q{n}"}}))
        shown = root / "trend" / "back" / f"{n:05d}_p"
        shown.mkdir(parents=True)
        summary = {
            "image": "p.png",
            "question": f"q{n}",
            "response": r"abcd<back>ef</back>g\boxed{6}",
            "expected": "6" if right else "7",
        }
        if n == 18:
            summary["response"] = r"\boxed{5}"
        (shown / "summary.json").write_text(json.dumps(summary))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_workers_score_as_one_process_does(tmp_path, monkeypatch, capsys, quick):  # noqa: F811
    """Also when one of them is killed at work: not a byte of the results differs."""
    write_recorded(tmp_path)
    with unpainted_figures():
        assert score(tmp_path, folder=tmp_path / "one") == 0
    said = capsys.readouterr().out
    killed = []

    def killing(*arguments, **options):
        bar = progress(*arguments, **options)
        count = bar.update

        def update(number):
            if options["description"] == "attention" and not killed:
                killed.append(multiprocessing.active_children()[-1].pid)
                os.kill(killed[0], signal.SIGKILL)
            count(number)

        bar.update = update
        return bar

    monkeypatch.setattr(chunks, "progress", killing)
    monkeypatch.setattr(chunks, "CHUNK", 2)
    with unpainted_figures():
        assert score(tmp_path, "--workers", "2", folder=tmp_path / "many") == 0
    printed = capsys.readouterr()
    assert printed.out.replace("/many/", "/one/") == said
    assert killed
    one, many = (tmp_path / name / "score" for name in ("one", "many"))
    assert {path.name for path in one.iterdir()} == {path.name for path in many.iterdir()}
    assert [path.name for path in many.parent.iterdir()] == ["score"]  # nothing is left over
    for path in one.iterdir():
        if path.name != "score.json":
            assert (many / path.name).read_bytes() == path.read_bytes(), path.name
    text = (many / "score.json").read_text().replace(str(many.parent), str(one.parent))
    assert text == (one / "score.json").read_text()


@pytest.mark.slow
def test_a_folder_of_trend_is_scored_with_its_traces(tmp_path, capsys):
    write_recorded(tmp_path)
    with unpainted_figures():
        assert score(tmp_path, folder=tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "(9 right, 8 wrong)" in printed
    assert "left out: 1 of 18 traces is of another question or answer than the line" in printed
    found = json.loads((tmp_path / "out" / "score" / "score.json").read_text())["attention"]
    assert (found["right"], found["without_trace"], found["of_another_answer"]) == (9, 0, 1)
    table = pd.read_csv(tmp_path / "out" / "score" / "attention_regions.csv")
    back = table.set_index(["definition", "region"]).loc[("mass", "back")]
    assert back["relation"] == "higher when right"
    assert (back["right_runs"], back["wrong_runs"]) == (9, 8)
    assert len(pd.read_parquet(tmp_path / "out" / "score" / "attention_steps.parquet"))
    assert (tmp_path / "out" / "score" / "correctness.png").exists()
    (tmp_path / "trend" / "cot").mkdir()
    assert score(tmp_path, folder=tmp_path / "out") == 2
    assert "give one of trend/back, trend/cot" in capsys.readouterr().err


RIGHT = {"question": "q", "answer": "6", "response": "6"}


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([], [], "is empty: give a file of answers"),
        ([{"question": "q", "answer": "6"}], [], "its first record has 'question', 'answer'"),
        ([{"question": "q", "response": "6"}], [], "no true answer is known"),
        ([RIGHT], ["--benchmark", "chair"], "--objects FILE belongs"),
        ([RIGHT], ["--benchmark", "pope"], "here it is yes or no"),
        ([RIGHT | {"answer": "yes"}], ["--benchmark", "mme"], "has no 'category'"),
        ([RIGHT], ["--definition", "heat"], "definition 'heat'"),
        ([RIGHT], ["--traces", "."], "no traces of numbered lines"),
        ([RIGHT], ["--traces", "gone"], "there is no folder 'gone'"),
        ([RIGHT], ["--answers_format", "pdf"], "unknown format 'pdf': use one of look-back"),
        ([RIGHT], ["--answers_format", "vllm"], "line 1: is not of the format vllm: it lacks 'out"),
        (
            [RIGHT | {"answer": "yes"}],
            ["--benchmark", "hallusionbench"],
            "line 1 has no 'category'",
        ),
        ([RIGHT | {"id": "a"}], ["--benchmark", "pope"], "the truth of line 1 (id 'a') is '6'"),
        ([RIGHT], ["--workers", "0"], "--workers 0: give at least 1"),
        ([RIGHT], ["--against", "gone.json"], "'gone.json' cannot be"),
        (
            [RIGHT | {"id": "a"}] * 2,
            ["--against", "answers.jsonl"],
            "several answers 'a'",
        ),
    ],
)
def test_bad_input_is_one_line(lines, options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "answers.jsonl", lines)
    assert score(file, *options, folder=tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("attnlens score: error: ")
    assert words in error
    assert not (tmp_path / "out" / "score").exists()


def test_a_bad_record_is_skipped_and_said(tmp_path, capsys):
    file = write(tmp_path / "answers.jsonl", [RIGHT, {"answer": "6"}, 7])
    assert score(file, folder=tmp_path) == 1
    assert capsys.readouterr().err.count("attnlens score: skipped line") == 2


def test_a_table_of_steps_has_no_verdict_where_none_is_known(monkeypatch, capsys):
    data = planted_dataset(np.full(2, 0.3))
    data["predicted_token"] = ("step", ["a", r"\boxed{2x+1}"])
    question = Question("a.png", "q", "1+2x", 1)
    assert steps_table(Trace(data), question)["right"].all()
    monkeypatch.setattr("attnlens.answers.grader.find_spec", lambda _: None)
    assert steps_table(Trace(data), question)["right"].isna().all()
    assert steps_table(Trace(data), replace(question, answer="6"))["right"].isna().all()
    assert not steps_table(Trace(data), replace(question, answer="red"))["right"].any()
    print_unjudged("trend", 2)
    assert "2 answers could not be judged" in capsys.readouterr().err


def test_without_math_verify_score_says_what_to_install(answers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("attnlens.answers.grader.find_spec", lambda _: None)
    assert score(answers[0], folder=tmp_path) == 2
    assert "'2x+1' is '1+2x': pip install attnlens[eval]" in capsys.readouterr().err
    assert score(answers[1], "--rule", "look-back", folder=tmp_path) == 2
    assert "needs mathruler and math-verify: pip install attnlens[eval]" in capsys.readouterr().err


def test_only_traces_of_the_same_answer_and_pairs_of_the_same_picture_count(tmp_path):
    from attnlens.runs.answered import _same_answer

    assert _same_answer("It is red. Done", "It is red.", {})  # a stop string was cut off
    assert not _same_answer("It is red.", "It is blue.", {})
    assert not _same_answer("It is red.", "", {})
    pictures = [[f"{n + shift}.png" for n in range(4)] for shift in (0, 1)]
    files = [
        write(
            tmp_path / f"{k}.jsonl",
            [RIGHT | {"image": one, "id": str(i)} for i, one in enumerate(named)],
        )
        for k, named in enumerate(pictures)
    ]
    assert score(files[0], "--against", files[1], folder=tmp_path) == 2


def write_traces(root, answers):
    """Traces of lines 1, 2, ..., each with its question and its answer."""
    for n, (question, answer) in enumerate(answers, 1):
        data = planted_dataset(np.full(2, 0.3))
        data["predicted_token"] = ("step", ["", answer])
        Trace(data).save(root / f"{n:05d}_p" / "trace.zarr")
        settings = {"settings": {"question": question}}
        (root / f"{n:05d}_p" / "settings.json").write_text(json.dumps(settings))


def test_traces_that_do_not_match_are_counted_and_leave_the_score(tmp_path, capsys):
    """Also where too few are left, or none: what was judged is written."""
    file = write(tmp_path / "a.jsonl", [RIGHT, RIGHT | {"answer": "7"}, RIGHT])
    write_traces(tmp_path / "other", [("x", "6"), ("q", "8"), ("x", "6")])
    write_traces(tmp_path / "one", [("q", "6"), ("q", "8")])
    other, few = (
        "3 of 3 traces are of another question or answer than the line of the same number",
        "1 of 3 answers has no trace; 1 of 2 traces is of another question or answer than the line "
        "of the same number; 1 right and 0 wrong answers",
    )
    for name, words in (("other", other), ("one", few)):
        assert score(file, "--traces", tmp_path / name, folder=tmp_path / "out") == 0
        printed = capsys.readouterr().out
        assert f"attention beside correctness: left out: {words}" in printed
        assert ("0 right and 0 wrong" in printed) is False
        found = json.loads((tmp_path / "out" / "score" / "score.json").read_text())
        assert found["rules"]["attnlens"]["right"]["mean"] == 2 / 3
        assert found["attention"]["problem"].startswith(words)
        assert len(pd.read_parquet(tmp_path / "out" / "score" / "answers.parquet")) == 3


def test_traces_are_looked_for_before_anything_is_judged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("attnlens.reports.score.judge_file", None)
    file = write(tmp_path / "a.jsonl", [RIGHT])
    assert score(file, "--traces", tmp_path / "gone", folder=tmp_path / "out") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_format_of_answers_has_an_option_of_its_own(tmp_path, capsys):
    """Pictures' formats keep their old name beside that of replay."""
    file = write(tmp_path / "a.jsonl", [RIGHT | {"outputs": [{"text": "7"}]}])
    for name, right in (("vllm", 0.0), ("plain", 1.0)):
        assert score(file, "--answers_format", name, folder=tmp_path) == 0
        found = json.loads((tmp_path / "score" / "score.json").read_text())
        assert (found["format"], found["rules"]["attnlens"]["right"]["mean"]) == (name, right)
    for option in ("--pictures", "--format"):
        assert score(file, option, "pdf", folder=tmp_path) == 0
        found = json.loads((tmp_path / "score" / "score.json").read_text())
        assert found["settings"]["formats"] == ["pdf"]
    (tmp_path / "folder").mkdir()
    assert score(tmp_path / "folder", "--answers_format", "plain", folder=tmp_path) == 2
    assert "is a folder of results, so leave the option out" in capsys.readouterr().err


def test_several_answers_to_one_request_are_compared(tmp_path):
    outputs = [{"text": "6"}, {"text": "7"}]
    asked = {"request_id": "0", "question": "q", "answer": "6"}
    first = write(tmp_path / "a.jsonl", [asked | {"outputs": outputs}])
    second = write(tmp_path / "b.jsonl", [asked | {"outputs": outputs[::-1]}])
    assert score(first, "--against", second, folder=tmp_path) == 0
    found = json.loads((tmp_path / "score" / "score.json").read_text())["against"]
    assert (found["answers"], found["only_here"], found["only_there"]) == (2, 1, 1)


def test_differences_of_an_earlier_score_do_not_stay(answers, tmp_path):
    assert score(answers[1], "--rule", "look-back", folder=tmp_path) == 0
    assert (tmp_path / "score" / "differences.csv").is_file()
    assert score(write(tmp_path / "a.jsonl", [RIGHT]), folder=tmp_path) == 0
    assert not (tmp_path / "score" / "differences.csv").exists()


def test_a_damaged_trace_leaves_out_itself_alone(tmp_path, capsys):
    records = [RIGHT if n % 2 else RIGHT | {"answer": "7"} for n in range(6)]
    file = write(tmp_path / "a.jsonl", records)
    write_traces(tmp_path / "runs", [("q", "6")] * 6)
    chunk = next((tmp_path / "runs" / "00002_p").glob("trace.zarr/mass/*.0.*"))
    chunk.write_bytes(chunk.read_bytes()[:-5])
    assert score(file, "--traces", tmp_path / "runs", folder=tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "00002_p/trace.zarr' is damaged" in printed.err
    assert "the command that wrote it makes it again" in printed.err
    assert "1 of 6 traces could not be measured" in printed.out
    found = json.loads((tmp_path / "out" / "score" / "score.json").read_text())["attention"]
    assert (found["right"], found["wrong"], found["unreadable"]) == (2, 3, 1)


def test_an_error_of_our_own_is_no_note(tmp_path, capsys, monkeypatch):
    def broken(_):
        raise KeyError("visual")

    monkeypatch.setattr("attnlens.reports.score.attention_of", broken)
    file = write(tmp_path / "a.jsonl", [RIGHT, RIGHT | {"answer": "7"}])
    write_traces(tmp_path / "runs", [("q", "6")] * 2)
    assert score(file, "--traces", tmp_path / "runs", folder=tmp_path / "out") == 1
    assert "KeyError: 'visual'" in capsys.readouterr().out
    assert (tmp_path / "out" / "score" / "answers.parquet").exists()


def test_a_record_that_cannot_be_kept_is_a_bad_line(tmp_path, capsys):
    deep = nested = {}
    for _ in range(500):
        nested["a"] = nested = {}
    half = RIGHT | {"id": "\ud800x"}
    file = write(tmp_path / "a.jsonl", [RIGHT | {"extra": deep}, half, RIGHT])
    assert score(file, folder=tmp_path) == 1
    printed = capsys.readouterr()
    assert "2 answers" in printed.out
    assert "line 2: 'id'" in printed.err
