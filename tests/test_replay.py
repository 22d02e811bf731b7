"""Answers of other engines: read from their own files, and fed again as they were generated."""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture, unpainted_figures
from PIL import Image

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.force import drift
from attnlens.interventions import At, AtStep, Copy, ForceTokens, Knockout, Nothing, Route
from attnlens.models.modes import MODES
from attnlens.reports.table import steps_table
from attnlens.reports.trend import _Replayed
from attnlens.runs.recordings import find_runs
from attnlens.runs.replays import assumed, replay_one, settings_of
from attnlens.runs.responses import FORMATS, read_responses
from attnlens.runs.settings import ReplaySettings
from attnlens.testbed import held_out_sample

SYSTEM = "You are a helpful assistant."
SETTINGS = ReplaySettings(mode="back")


class Live:
    """An answer that was generated here, and all that an engine's file says of it."""

    def __init__(self, vlm, folder):
        sample = held_out_sample(3, 1, "back")
        self.image = folder / "7.png"
        sample.scene.draw().save(self.image)
        self.question, self.truth = sample.question.text, sample.question.answer
        self.asked = MODES["back"].replace("{question}", self.question)
        self.prompt = vlm.prompt(self.image, self.question, "back")
        self.trace = attnlens.run(vlm, self.prompt, 300, visual_map=False)
        self.ids = self.trace.data["predicted_token_id"].values.tolist()
        self.text = self.trace.text
        assert self.trace.cut_off is False

    def data_url(self):
        return "data:image/png;base64," + base64.b64encode(self.image.read_bytes()).decode()


@pytest.fixture(scope="module")
def live(testbed, tmp_path_factory):
    return Live(testbed, tmp_path_factory.mktemp("live"))


def plain(one):
    return {
        "image": one.image.name,
        "question": one.question,
        "response": one.text,
        "answer": one.truth,
        "finish_reason": "stop",
    }


def look_back(one):
    question, words = one.asked.split(" Then ", 1)
    result = {"id": 7, "question": question, "answer": one.truth, "prediction": one.text}
    config = {"system_prompt": f"Then {words}", "version": "back"}
    return {"results": [result], "config": {**config, "min_pixels": 1, "max_pixels": 10**9}}


def vllm(one):
    # the placeholder is repeated, as vLLM gives it back
    prompt = one.prompt.text.replace("<|image_pad|>", "<|image_pad|>" * 9)
    output = {"index": 0, "text": one.text, "token_ids": one.ids, "logprobs": None}
    return {
        "request_id": "3",
        "prompt": prompt,
        "prompt_token_ids": one.prompt.inputs["input_ids"][0].tolist(),
        "outputs": [{**output, "finish_reason": "stop", "stop_reason": None}],
        "finished": True,
        "id": 7,
        "answer": one.truth,
    }


def sglang(one):
    reason = {"type": "stop", "matched": one.ids[-1]}
    return {
        "text": one.text,
        "output_ids": one.ids,
        "meta_info": {"id": "7", "prompt_tokens": 5, "finish_reason": reason},
        "question": one.question,
        "image": one.image.name,
        "answer": one.truth,
    }


def batch(one):
    asked = chat(one)
    reply = {"id": "chatcmpl-1", "object": "chat.completion", "choices": asked.pop("choices")}
    return {
        "id": "batch_req_1",
        "custom_id": "7",
        "response": {"status_code": 200, "request_id": "r", "body": reply},
        "error": None,
        **asked,
    }


def chat(one):
    parts = [
        {"type": "image_url", "image_url": {"url": one.data_url(), "detail": "auto"}},
        {"type": "text", "text": one.asked},
    ]
    reply = {"message": {"role": "assistant", "content": one.text}, "finish_reason": "stop"}
    return {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}],
        "choices": [reply],
        "answer": one.truth,
    }


def lmms_eval(one):
    return {
        "doc_id": 7,
        "target": one.truth,
        "filtered_resps": [one.text],
        "input": one.asked,
        "doc_hash": "ab",
        "exact_match": 1.0,
    }


WRITERS = {
    "plain": plain,
    "look-back": look_back,
    "vllm": vllm,
    "sglang": sglang,
    "batch": batch,
    "chat": chat,
    "lmms-eval": lmms_eval,
}


def written(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def one_of(path, **options):
    read = read_responses(path, **options)
    (response,) = read.responses
    assert response.question.problem == ""
    return response


@pytest.mark.parametrize("name", FORMATS)
def test_a_replay_is_the_live_run(name, live, testbed, tmp_path):
    path = written(tmp_path / "answers.json", WRITERS[name](live))
    response = one_of(path, images=live.image.parent, save_folder=tmp_path / "pictures")
    assert response.question.answer == live.truth
    trace = replay_one(testbed, response, settings_of(response, SETTINGS))
    steps = trace.data.sizes["step"]
    has_end = response.finished is not None
    assert steps == len(live.ids) - (not has_end)
    first = live.trace.data.isel(step=slice(steps))
    np.testing.assert_allclose(trace.data["mass"], first["mass"], rtol=0, atol=1e-5)
    assert trace.data["mass"].dims == first["mass"].dims
    assert set(trace.data.variables) == set(first.variables)
    replayed = {"source": "token ids" if response.token_ids else "text", "drift": 0}
    replayed["cut_off"] = False if has_end else None
    if name == "vllm":
        replayed["same_prompt"] = True
    if name == "look-back":
        replayed["resized_first"] = [1, 10**9]
    assert trace.attrs["replayed"] == replayed
    assert trace.attrs["intervention"] == "Nothing()"

    rows = steps_table(trace, response.question)
    expected = steps_table(live.trace, replace(response.question, text=live.question))[:steps]
    if response.asked.prompt or response.asked.messages:
        expected = expected.assign(mode=pd.array(["messages"] * steps, "string"))
    if not has_end:
        assert rows["cut_off"].isna().all()
        expected["cut_off"] = rows["cut_off"]
    expected["question"] = rows["question"]
    pd.testing.assert_frame_equal(rows, expected, rtol=0, atol=1e-4)


def test_the_command_writes_what_trend_writes(live, testbed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("attnlens.models.load.load", lambda *_, **__: testbed)
    first = "".join(live.trace.tokens[:20])  # short answers are drawn sooner
    one = plain(live) | {"image": live.data_url(), "response": first}
    path = written(tmp_path / "a.jsonl", one, sglang(live))
    path.write_text(path.read_text().replace('"output_ids"', '"ids"') + "\n{not json")
    out = tmp_path / "out"
    options = ["replay", "--data", path, "--save_folder", out, "--images", live.image.parent]
    with unpainted_figures():
        assert main([str(word) for word in options]) == 1
        said = capsys.readouterr().err
        assert "answers in the format plain" in said
        assert "line 2: is not of the format plain: it lacks 'response'; it has 'text'," in said
        assert "line 3: is not valid JSON" in said
        assumed = [line for line in said.splitlines() if "assumed:" in line]
        assert len(assumed) == 4
        assert "in the words of mode back (the default of --mode)" in assumed[0]
        assert "'You are a helpful assistant.' (the default of --system)" in assumed[1]
        assert "the checkpoint's own (the default of --min_pixels)" in assumed[2]

        (run,) = (out / "replay_runs" / "back").iterdir()
        settings = json.loads((run / "settings.json").read_text())
        assert settings["settings"]["replayed"]["finished"] is True
        trace = attnlens.Trace.load(run / "trace.zarr")
        assert trace.attrs["replayed"]["source"] == "text"
        shown = out / "replay" / "back" / run.name
        assert (shown / "back_step_attention.png").is_file()
        summary = json.loads((shown / "summary.json").read_text())
        assert summary["provenance"]["replayed"] == trace.attrs["replayed"]
        table = pd.read_parquet(out / "replay_back_steps.parquet")
        np.testing.assert_allclose(
            table["mass"],
            live.trace.data["mass"][:21].sel(segment="visual").mean(("layer", "head")),
            rtol=0,
            atol=1e-5,
        )
        assert table["line"].unique().tolist() == [1]
        # nothing outside the folder, and the picture once, as it was
        (saved,) = (out / "replay_pictures").iterdir()
        assert saved.read_bytes() == live.image.read_bytes()
        assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "out"}

        before = (run / "settings.json").stat().st_mtime_ns
        assert main([str(word) for word in options]) == 1
        assert (run / "settings.json").stat().st_mtime_ns == before
        shorter = one | {"response": first[:-9], "finish_reason": "length"}
        written(path, shorter)
        capsys.readouterr()
        assert main([str(word) for word in options]) == 0
    assert (run / "settings.json").stat().st_mtime_ns != before
    assert "1 of 1 answer had not ended, as the file says" in capsys.readouterr().err
    assert pd.read_parquet(out / "replay_back_steps.parquet")["cut_off"].all()


@pytest.mark.parametrize("version", ["grpo", "back", "hint"])
def test_look_back_is_asked_as_its_evaluation_asks(version, tiny, tmp_path):
    """Its prompt is written out here, from its eval/utils/processing.py."""
    words, question = "Think <back> </back> \\boxed{}.", "How many?\n\n Options: A "
    picture(300, 200).save(tmp_path / "4@x.png")
    result = {"id": "4@x", "question": question, "answer": "3", "prediction": "\\boxed{3}"}
    config = {"system_prompt": words, "version": version, "min_pixels": 90_000}
    path = written(tmp_path / "a.json", {"results": [result], "config": config})
    response = one_of(path, images=tmp_path)
    prompt = settings_of(response, SETTINGS).prompt(tiny, response.question)
    system = words if version == "grpo" else SYSTEM
    user = {
        "grpo": question,
        "back": f"{question} {words}",
        "hint": f" {words} \n Qwestion: {question}",
    }[version]
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt.text == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{shown}{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (seen,) = prompt.pictures
    assert seen.size == (367, 244)  # 300 and 200, times the root of 90,000 / 60,000
    (info,) = prompt.images
    assert (info.width, info.height, info.path) == (300, 200, str(tmp_path / "4@x.png"))
    resized = Image.open(info.path).convert("RGB").resize((367, 244))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(resized))
    trace = replay_one(tiny, response, settings_of(response, SETTINGS))
    again, given = (attnlens.dependence(tiny, trace, prompt=p) for p in (None, prompt))
    np.testing.assert_array_equal(again["log_probability"], given["log_probability"])


def test_look_backs_own_words_are_known_modes(tmp_path):
    from attnlens.models.modes import LOOK_BACK

    words = LOOK_BACK["semantic-back-grpo"].system
    result = {"id": 1, "question": "Q", "answer": None, "prediction": "A"}
    found = []
    for version in ("grpo", "back", "hint"):
        config = {"system_prompt": words, "version": version, "max_pixels": 10}
        path = written(tmp_path / "a.json", {"results": [result], "config": config})
        found.append(one_of(path).asked.mode)
    assert found == ["semantic-back-grpo", "semantic-back", "semantic-back-hint"]


def test_what_a_file_says_of_the_end(tmp_path):
    def finished(record):
        return one_of(written(tmp_path / "a.json", record)).finished

    def of_vllm(**output):
        return {"question": "Q", "outputs": [{"text": "A", "token_ids": [1], **output}]}

    assert finished(of_vllm(finish_reason="stop", stop_reason=None)) is True
    assert finished(of_vllm(finish_reason="stop", stop_reason=151645)) is True
    assert finished(of_vllm(finish_reason="stop", stop_reason="</s>")) is None
    assert finished(of_vllm(finish_reason="length")) is False
    assert finished(of_vllm()) is None
    meta = {"finish_reason": {"type": "stop", "matched": "END"}}
    assert finished({"text": "A", "question": "Q", "meta_info": meta}) is None
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert finished({"messages": turns}) is None


def test_files_of_all_shapes_are_read(tmp_path):
    """Indented JSON, lists, older samples of lmms-eval, several answers to a question."""
    path = tmp_path / "a.json"
    record = {"image": "a.png", "question": "Q", "response": "A", "category": "x"}
    path.write_text(json.dumps([record, record], indent=2))
    read = read_responses(path)
    assert read.format == "plain"
    assert [one.question.line for one in read.responses] == [1, 2]
    assert read.responses[0].question.image == str(tmp_path / "a.png")
    assert read.responses[0].fields == {"category": "x"}

    sample = {
        "doc_id": 3,
        "doc": {"question": "q", "category": "colour"},
        "target": "yes",
        "arguments": ["Q in full", {"max_new_tokens": 16}, 3, "pope", "test"],
        "resps": [["Yes, it is."]],
        "filtered_resps": ["yes"],
    }
    (one,) = read_responses(written(path, {"args": {}, "logs": [sample]})).responses
    assert (one.question.text, one.text, one.question.answer) == ("Q in full", "Yes, it is.", "yes")
    assert (one.id, one.fields["category"], one.question.image) == ("3", "colour", "")

    outputs = [{"text": text, "token_ids": [4, 5]} for text in "ab"]
    read = read_responses(written(path, *[{"question": "Q", "outputs": outputs}] * 2))
    assert [one.text for one in read.responses] == ["a", "b", "a", "b"]
    assert [one.question.line for one in read.responses] == [1, 2, 3, 4]
    assert read.assumed == ["records hold several answers: lines are counted by answer"]

    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    one = one_of(written(path, {"messages": turns, "pic": "b.png"}), image_column="pic")
    assert (one.text, one.question.text) == ("A", "Q")
    assert one.question.image == str(tmp_path / "b.png")
    assert one.asked.messages == turns[:1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "Q", "response": "A", "image": 5}, "the picture is 5"),
        ({"question": "Q", "response": "A", "image": "data:,x"}, "cannot be read"),
        ({"question": "Q\ud800", "response": "A"}, "half a character"),
        ({"question": "Q", "outputs": [{"text": "A", "token_ids": ["a"]}]}, "list of token ids"),
        ({"outputs": [{"text": "A"}]}, "has no 'prompt'"),
        ({"question": "Q", "response": None}, '^\'response\' is null: give {"image", "question"'),
        ({"question": "Q", "prediction": None}, "^'prediction' is null$"),
        ({"messages": "Q", "response": "A"}, "^'messages' is 'Q': give"),
        ({"custom_id": "a", "response": {"body": {}}}, "has no 'choices': it is {}"),
        (
            {"custom_id": "a", "response": {"body": {"choices": [{"message": {"content": "A"}}]}}},
            "has neither 'messages' nor a 'question': add those of the request",
        ),
        ({"custom_id": "a", "response": None, "error": {"code": 5}}, "request failed: {'code': 5}"),
        (
            {"custom_id": "a", "response": {"status_code": 400, "body": {"error": "x"}}},
            "request failed: {'error': 'x'}",
        ),
        ({"question": "Q", "prompt": [1], "outputs": [{"text": "A"}]}, r"'prompt' is \[1\]"),
        ({"messages": [{"role": "user", "content": "Q"}]}, "has no reply"),
        ({"doc_id": 1, "resps": [["A"]]}, "has neither 'input' nor 'arguments'"),
    ],
)
def test_records_that_cannot_be_used_say_why(record, message, tmp_path):
    path = written(tmp_path / "a.jsonl", record)
    (response,) = read_responses(path, save_folder=tmp_path / "out").responses
    with pytest.raises(InputError, match=message):
        raise InputError(response.question.problem)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (
            [{"a": 1}],
            (),
            "first record has 'a'; name it with --answers_format, or give one of look-back: .*; "
            "plain: ",
        ),
        (
            [{"image": "a.png", "question": "Q"}],
            (),
            "has 'image', 'question', and lacks 'prediction' for the format look-back, or "
            "'response' for the format plain; ",
        ),
        (
            [{"question": "Q"}],
            ("--answers-format", "plain"),
            "line 1: is not of the format plain: it lacks 'response'; it has 'question'",
        ),
        ([{"question": "Q"}], ("--data", "a.csv"), "'a.csv': CSV is not read, so write it as JSON"),
        ([{"a": 1}], ("--format", "pdf"), "unknown format 'pdf': use one of look-back, vllm"),
        ([], (), "is empty"),
        (
            [{"question": "Q", "response": "A", "id": 5}],
            (),
            r"line 1: names no picture: .*the id '5'",
        ),
        (
            [{"question": "Q", "response": "A"}],
            (),
            "line 1: names no picture: give each record an 'image' or an 'id' ",
        ),
        (
            [{"question": "Q", "response": "A", "image": "https://x.org/a.png"}],
            (),
            "is on the network",
        ),
        (
            [{"question": "Q", "response": "A", "image": "a" * 300 + "/b.png"}],
            ("--images", "."),
            "line 1: there is no image at",
        ),
        ([{"question": "Q", "response": "", "image": "a.png"}], (), "the answer is empty"),
        ([{"question": "Q", "response": "A"}], ("--images", "none"), "there is no folder 'none'"),
        (
            [{"messages": [{"role": "user", "content": "Q"}], "response": "A"}],
            ("--mode", "cot"),
            "--mode 'cot': the file has whole prompts",
        ),
        (
            [{"results": [{"question": "Q", "prediction": "A"}], "config": {"min_pixels": 9}}],
            ("--min_pixels", "8"),
            "--min_pixels 8: the file says 9, so leave the option out",
        ),
        (
            [
                {
                    "results": [{"question": "Q", "prediction": "A"}],
                    "config": {"version": "forward", "system_prompt": "S"},
                }
            ],
            (),
            "version 'forward': use one of grpo, back, hint",
        ),
    ],
)
def test_bad_input_is_one_line(records, options, message, tmp_path, capsys):
    path = written(tmp_path / "a.jsonl", *records)
    command = ["replay", "--data", str(path), "--save_folder", str(tmp_path / "out"), *options]
    assert main(command) == 2
    *_, last = capsys.readouterr().err.splitlines()
    with pytest.raises(InputError, match=message):
        raise InputError(last)
    assert not (tmp_path / "out").exists()


def test_every_format_is_named(capsys):
    page = (Path(__file__).parents[1] / "docs" / "replay.md").read_text()
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join([*FORMATS][:-1])} or plain" in printed
    formats = page.split("## Formats")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)`", formats, re.MULTILINE) == [*FORMATS]


def test_drift_is_counted(tiny, tmp_path):
    """A tokeniser that composes characters, as Qwen's does, does not give all texts back."""
    from tokenizers import normalizers

    assert drift("a<back>b", "a<back>b") == 0
    assert drift("aXXb", "aYb") == 2
    assert drift("aab", "ab") == drift("ab", "aab") == 1
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    processor = copy.copy(tiny.processor)
    processor.tokenizer = tokenizer
    prompt = tiny.prompt(picture(), "How many?")
    trace = attnlens.replay(replace(tiny, processor=processor), prompt, "two cafe\u0301s")
    assert trace.text == "two caf\u00e9s"
    assert trace.attrs["replayed"] == {"source": "text", "drift": 2, "cut_off": None}

    picture().save(tmp_path / "a.png")
    ids = [*tiny.tokenizer("three")["input_ids"], tiny.model.generation_config.eos_token_id]
    for text, expected in (("three", 0), ("three<|im_end|>", 0), ("there", 2)):
        record = {"question": "Q", "image": "a.png", "outputs": [{"text": text, "token_ids": ids}]}
        response = one_of(written(tmp_path / "a.json", record))
        trace = replay_one(tiny, response, SETTINGS)
        assert trace.attrs["replayed"]["drift"] == expected


def test_force_and_replay_are_one(tiny):
    prompt = tiny.prompt(picture(), "How many?")
    assert attnlens.force is attnlens.replay
    end = tiny.model.generation_config.eos_token_id
    ended = attnlens.replay(tiny, prompt, "three", finished=True)
    assert ended.data["predicted_token_id"].values[-1] == end
    assert ended.cut_off is False
    assert attnlens.replay(tiny, prompt, "three", finished=False).cut_off is True
    assert attnlens.replay(tiny, prompt, "three").cut_off is None
    ids = ended.data["predicted_token_id"].values
    for same in (ids, ended):
        again = attnlens.replay(tiny, prompt, same)
        np.testing.assert_array_equal(again.data["mass"], ended.data["mass"])


def test_nothing_of_a_file_is_lost_in_silence(tmp_path):
    """Repeats are answers, several documents are refused, and a truth of any kind is replayed."""
    path = tmp_path / "answers.json"
    record = {"doc_id": 3, "input": "q", "resps": [["x"], ["y"]], "target": ["a", "b"]}
    path.write_text(json.dumps(record))
    read = read_responses(path)
    assert [one.text for one in read.responses] == ["x", "y"]
    assert {one.question.answer for one in read.responses} == {None}
    assert "the right answer is ['a', 'b']" in read.responses[0].fields["truth_problem"]
    path.write_text("\n".join([json.dumps([record])] * 2))
    with pytest.raises(InputError, match="holds several JSON documents"):
        read_responses(path)


def test_a_picture_in_a_column_is_not_kept_in_memory(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"question": "q", "response": "r", "shown": "a.png"}))
    (one,) = read_responses(path, image_column="shown").responses
    assert one.question.image == str(tmp_path / "a.png")
    assert not one.fields


DOING = {
    "copy": Copy(when=At("<back>")),
    "route:50": Route(when=At("<back>"), percent=50),
    "knockout": Knockout(when=At("<back>")),
}
"""Interventions by the words of the command line."""


def times(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob("settings.json"))}


@pytest.mark.slow
def test_twins_are_the_same_answer_under_an_intervention(
    live, testbed, tmp_path, capsys, monkeypatch
):
    """Their masses are those of a forced replay, and of a generation forced token by token."""
    monkeypatch.setattr("attnlens.models.load.load", lambda *_, **__: testbed)
    answers = [plain(live), plain(live) | {"response": "It is \\boxed{3}."}]
    path = written(tmp_path / "a.jsonl", *answers)
    out = tmp_path / "out"
    options = ["replay", "--data", path, "--save_folder", out, "--images", live.image.parent]
    options += ["--definition", "mass", "--device", "cpu"]
    acting = [word for name in DOING for word in ("--intervention", name)]

    def replayed(*more):
        with unpainted_figures():
            assert main([str(word) for word in (*options, *more)]) == 0
        return times(out / "replay_runs")

    untouched = replayed()
    made = replayed(*acting)
    said = capsys.readouterr().out
    assert untouched.items() <= made.items()
    assert len(made) == len(untouched) * (1 + len(DOING))
    traces = out / "replay_runs" / "back_interventions"
    results = attnlens.recover(testbed, live.prompt, list(DOING.values()), 300, detail="step")
    recovered = results.per_sample("mass").set_index("run")["rise"]
    counted = results.per_sample("mass", include_copied=True).set_index("run")["rise"]
    table = pd.read_csv(out / "replay_back_recovery.csv")
    table = table[table["definition"] == "mass"].set_index("intervention")
    for name, intervention in DOING.items():
        folder = traces / name.replace(":", "=")
        twin, short = (attnlens.Trace.load(one / "trace.zarr") for one in sorted(folder.iterdir()))
        assert twin.data["predicted_token_id"].values.tolist() == live.ids
        assert twin.attrs["interventions"]
        assert short.attrs["interventions"] == []
        at_once = attnlens.replay(testbed, live.prompt, live.ids, intervention)
        one_by_one = ForceTokens(tuple(live.ids), when=AtStep(0)) + intervention
        generated = attnlens.run(testbed, live.prompt, len(live.ids), one_by_one)
        for other in (at_once, generated):
            np.testing.assert_allclose(twin.data["mass"], other.data["mass"], rtol=0, atol=1e-5)
        row = table.loc[name]
        assert (row["acted"], row["never_fired"]) == (1, 1)
        assert row["rise"] == pytest.approx(recovered[name], abs=1e-5)
        assert row["rise_with_copied"] == pytest.approx(counted[name], abs=1e-5)
        assert f"{name}: acted in 1 of 2 answers (the trigger '<back>' never fires in 1)" in said
    steps = pd.read_parquet(out / "replay_back_twins.parquet")
    assert steps["intervention"].unique().tolist() == ["untouched", *DOING]
    own = pd.read_parquet(out / "replay_back_steps.parquet")
    mine = steps[steps["intervention"] == "untouched"].drop(columns="intervention")
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), own)
    of_copy = steps.query("intervention == 'copy' and line == 1")
    (copied,) = (traces / "copy").glob("00001_*/trace.zarr")
    mass = attnlens.Trace.load(copied).data["mass"].sel(segment="copied")
    assert mass.max() > 0
    np.testing.assert_allclose(of_copy["mass_copied"], mass.mean(("layer", "head")), rtol=1e-5)
    assert find_runs(out) == [path.parent / "trace.zarr" for path in sorted(untouched)]

    assert replayed(*acting) == made
    shutil.rmtree(next((traces / "copy").glob("00002_*")) / "trace.zarr")
    again = replayed(*acting)
    assert {path.parent.parent.name for path in made if made[path] != again[path]} == {"copy"}
    later = replayed("--intervention", "copy", "--when", "step:3")
    changed = {path.parent.parent.name for path in made if again[path] != later[path]}
    assert changed == {"copy"}
    table = pd.read_csv(out / "replay_back_recovery.csv")
    assert set(table["acted"]) == {2}


def test_twins_in_half_precision_compare_with_the_same_way_of_feeding(tiny, tmp_path, monkeypatch):
    """One token to a pass on both sides: what changes nothing changes no bit."""
    half = replace(tiny, model=copy.deepcopy(tiny.model).to(torch.bfloat16))
    monkeypatch.setattr("attnlens.models.load.load", lambda *_, **__: half)
    picture().save(tmp_path / "a.png")
    record = {"image": "a.png", "question": "How many?", "response": "three <back> four </back> 3"}
    path = written(tmp_path / "a.jsonl", record)
    out = tmp_path / "out"
    options = ["--intervention", "boost:0", "--when", "step:4", "--save_folder", str(out)]
    with unpainted_figures():
        assert main(["replay", "--data", str(path), *options]) == 0
    steps = pd.read_parquet(out / "replay_back_twins.parquet")
    untouched, boosted = (one.reset_index(drop=True) for _, one in steps.groupby("intervention"))
    if untouched["intervention"][0] != "untouched":
        untouched, boosted = boosted, untouched
    pd.testing.assert_frame_equal(
        untouched.drop(columns="intervention"),
        boosted.drop(columns="intervention"),
        check_exact=True,
    )
    (nothing,) = (out / "replay_runs" / "back_interventions" / "nothing").iterdir()
    prompt = half.prompt(tmp_path / "a.png", "How many?", "back")
    expected = attnlens.replay(half, prompt, record["response"], Nothing())
    trace = attnlens.Trace.load(nothing / "trace.zarr")
    np.testing.assert_array_equal(trace.data["mass"], expected.data["mass"])
    assert find_runs(out) == [next((out / "replay_runs" / "back").iterdir()) / "trace.zarr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--intervention", "glue"], "unknown intervention 'glue': give "),
        (["--intervention", "route:x"], "'x' is not a number"),
        (["--intervention", "copy:gone.png"], "no image at 'gone.png'"),
        (["--intervention", "copy"] * 2, "--intervention copy is given twice"),
        (["--intervention", "copy", "--when", "step:-1"], "inside the prompt"),
        (["--intervention", "copy", "--mode", "cot"], "give --when, such as --when step:20"),
        (["--when", "<back>"], "--when '<back>' without --intervention"),
        (["--positions", "original"], "--positions 'original' without --intervention"),
    ],
)
def test_bad_interventions_are_refused_before_the_model_is_loaded(
    options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("attnlens.models.load.load", None)
    picture().save(tmp_path / "a.png")
    path = written(tmp_path / "a.jsonl", {"image": "a.png", "question": "Q", "response": "A"})
    out = tmp_path / "out"
    assert main(["replay", "--data", str(path), "--save_folder", str(out), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_the_trigger_is_the_verification_that_the_file_asks_for(tmp_path, capsys, monkeypatch):
    """Where prompts ask for several, none is chosen."""
    monkeypatch.setattr("attnlens.models.load.load", None)
    picture().save(tmp_path / "a.png")
    chats = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": w}]}
            ],
            "response": "A",
            "image": "a.png",
        }
        for w in ("Use <back>.", "Use <REFLECTION>.")
    ]
    path = written(tmp_path / "a.jsonl", *chats)
    command = ["replay", "--data", str(path), "--save_folder", str(tmp_path / "out")]
    assert main([*command, "--intervention", "copy"]) == 2
    assert "or for several: give --when" in capsys.readouterr().err.splitlines()[-1]


def test_an_engines_count_of_requests_names_no_picture(tmp_path, capsys):
    """It goes on over calls: the third request of the second call is no picture's name."""
    for name in ("2", "7"):
        picture().save(tmp_path / f"{name}.png")
    outputs = [{"text": "A", "token_ids": [4]}]
    of_vllm = {"request_id": "2", "question": "Q", "outputs": outputs}
    meta = {"id": "2", "finish_reason": None}
    for record in (of_vllm, {"text": "A", "question": "Q", "meta_info": meta}):
        path = written(tmp_path / "a.jsonl", record)
        (one,) = read_responses(path, images=tmp_path).responses
        assert (one.id, one.question.image) == ("2", "")
        command = ["replay", "--data", str(path), "--images", str(tmp_path), "--save_folder"]
        assert main([*command, str(tmp_path / "out")]) == 2
        assert "give each record an 'image' or an 'id' " in capsys.readouterr().err
        (one,) = read_responses(written(path, record | {"id": 7}), images=tmp_path).responses
        assert (one.id, one.question.image) == ("7", str(tmp_path / "7.png"))


def test_several_answers_of_a_record_have_ids_of_their_own(tmp_path):
    picture().save(tmp_path / "7.png")
    outputs = [{"text": text, "token_ids": [4]} for text in "abc"]
    path = written(tmp_path / "a.jsonl", {"id": 7, "question": "Q", "outputs": outputs})
    read = read_responses(path, images=tmp_path)
    assert [one.id for one in read.responses] == ["7", "7 (2)", "7 (3)"]
    assert {one.question.image for one in read.responses} == {str(tmp_path / "7.png")}


def test_the_question_of_a_whole_prompt_is_the_users_text(tmp_path):
    """Where tags make that sure; else it is all of the prompt."""
    shown = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    start, end = "<|im_start|>", "<|im_end|>\n"
    first = f"{start}system\nS{end}{start}user\nQ1{end}{start}assistant\nA1{end}"
    prompts = {
        f"{first}{start}user\n{shown}How\n\nmany?{end}{start}assistant\n": "How\n\nmany?",
        f"{start}user\nQ {shown}{end}{start}assistant\n<think>\n": "Q ",
        f"{start}user\n<|audio|>Q{end}{start}assistant\n": None,
        f"{start}user\nQ{end}": None,
        "USER: <image>\nQ ASSISTANT:": None,
    }
    for prompt, question in prompts.items():
        record = {"prompt": prompt, "outputs": [{"text": "A"}]}
        response = one_of(written(tmp_path / "a.json", record))
        assert response.question.text == (question or prompt)
        assert response.asked.prompt == prompt
        own = record | {"question": "own"}
        assert one_of(written(tmp_path / "a.json", own)).question.text == "own"


def test_batches_are_read_with_their_requests(tmp_path):
    """By messages, by the body of the request, or by a question; failures are said."""
    reply = {"message": {"role": "assistant", "content": "A"}, "finish_reason": "length"}
    line = {
        "id": "batch_req_1",
        "custom_id": "c",
        "response": {"status_code": 200, "body": {"choices": [reply]}},
        "error": None,
    }
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    failed = {"custom_id": "d", "response": None, "error": {"message": "too long"}}
    for asked in (
        {"messages": turns},
        {"method": "POST", "body": {"model": "m", "messages": turns}},
        {"question": "Q"},
    ):
        extra = {"image": "a.png", "answer": "B", "category": "x"}
        path = written(tmp_path / "a.jsonl", failed, line | asked | extra)
        read = read_responses(path)
        bad, one = read.responses
        assert read.format == "batch"
        assert bad.question.problem == "its request failed: {'message': 'too long'}"
        assert (one.id, one.question.text, one.text, one.finished) == ("c", "Q", "A", False)
        assert (one.question.image, one.question.answer) == (str(tmp_path / "a.png"), "B")
        assert one.fields == {"category": "x"}
        assert (one.asked.messages is None) == ("question" in asked)
    chatting = {"custom_id": "c", "messages": turns, "response": "A"}
    assert read_responses(written(path, chatting)).format == "chat"


def test_a_version_without_its_words_is_said(tmp_path):
    result = {"id": 1, "question": "Q", "prediction": "A", "image": "a.png"}
    path = written(tmp_path / "a.json", {"results": [result], "config": {"version": "grpo"}})
    (said, *_) = assumed(read_responses(path).responses, SETTINGS, {})
    assert said == (
        "the questions were asked in the words of mode back (the default of --mode); config names "
        "version grpo and no system_prompt, so the file's own words are not known"
    )


def test_special_tokens_in_a_text_are_counted(tiny):
    """They are fed as what they spell; an end token at the end is what ended the answer."""
    prompt = tiny.prompt(picture(), "How many?")
    for text, count in (
        ("three", None),
        ("three<|im_end|>", None),
        ("<|image_pad|>three<|im_end|>a<|im_end|>", 2),
    ):
        assert attnlens.replay(tiny, prompt, text).attrs["replayed"].get("special") == count
    ids = tiny.tokenizer("<|image_pad|>three")["input_ids"]
    assert "special" not in attnlens.replay(tiny, prompt, ids).attrs["replayed"]


def test_what_differs_from_the_file_is_said_with_its_lines():
    found = _Replayed()
    same = {"drift": 0, "cut_off": False, "same_prompt": True}
    for line in range(1, 9):
        found.add(same | ({"same_prompt": False} if line > 1 else {"special": 3}), line)
    assert found.said() == [
        "the prompts of 7 of 8 answers do not match the token ids in the file: another picture, "
        "mode, template, limits of pixels or checkpoint (lines 2, 3, 4, 5, 6 and 2 more)",
        "1 of 8 answers spells special tokens in the text, and these tokens are fed (line 1)",
    ]
