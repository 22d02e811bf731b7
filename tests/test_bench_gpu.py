"""``attnlens bench --gpu``, at the smallest size and on a CPU: what it tells apart."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict

import pytest

from attnlens.benchmark import gpu
from attnlens.benchmark.gpu_checks import WAYS, Way, check
from attnlens.benchmark.gpu_costs import overhead, replay_rate
from attnlens.benchmark.model import Shape
from attnlens.cli.main import main
from attnlens.recording import recorder

LEAN = Shape(layers=2, width=256, heads=2, key_heads=1, mlp=64, vocabulary=2048)
SIZES = {"device": "cpu", "visual": 16, "new": 6}
PART = gpu.Part("a part", "check", {}, 9)
RIGHT = {
    "way": "SDPA",
    "dtype": "float32",
    "family": "qwen2_5_vl",
    "tokens": 6,
    "different_tokens": 5,
    "same_tokens": True,
    "error_own": 1e-7,
    "error_eager": 2e-7,
    "right": True,
}


@pytest.mark.parametrize(("way", "dtype"), [("static cache", "float32"), ("SDPA", "bfloat16")])
def test_recording_is_right(way, dtype):
    row = check(way, dtype, LEAN, **SIZES)
    assert row["right"]
    assert row["error_own"] < 1e-6
    assert row["different_tokens"] > 1
    # half precision is measured against float32, and differs from it
    assert (row["error_eager"] > 1e-5) == (dtype == "bfloat16")


def test_a_wrong_mass_and_other_tokens_are_seen(monkeypatch):
    compute = recorder.attention_mass

    def late(attention, *args, **options):  # keys of another step
        attention.keys[0][:, :, 3] += 1
        return compute(attention, *args, **options)

    monkeypatch.setattr(recorder, "attention_mass", late)
    monkeypatch.setattr(recorder._WrittenKeys, "check", lambda *_: None)
    row = check("SDPA", "float32", LEAN, **SIZES)
    assert not row["right"]
    assert row["error_own"] > 1e-5


def test_what_was_to_be_compiled_must_have_been(monkeypatch):
    monkeypatch.setitem(WAYS, "compiled", Way(compile_mode="default"))
    row = check("compiled", "float32", LEAN, **SIZES)  # a cache that grows is not compiled
    assert row["graphs"] == [0, 0]
    assert row["same_tokens"]
    assert not row["right"]


def test_costs_are_ratios_of_what_was_timed():
    row = overhead(LEAN, device="cpu", visual=16, new=4, repeats=1)
    assert row["keys"] == 16 + 66 + 3
    assert row["ratio"] == pytest.approx(row["recorded_ms"] / row["plain_ms"])
    assert row["recorded_peak_mib"] > 0
    rows = {row["way"]: row for row in replay_rate(LEAN, **SIZES, repeats=1)}
    plain = rows["plain pass"]
    for row in rows.values():
        assert row["tokens_a_second"] == pytest.approx(6 / row["seconds"])
        assert row["ratio"] == pytest.approx(row["seconds"] / plain["seconds"])


@pytest.mark.parametrize(
    ("done", "why"),
    [
        (subprocess.TimeoutExpired("python", 9), "not ready in 9 seconds"),
        (subprocess.CompletedProcess([], -9, "", ""), "ended by signal 9"),
        (
            subprocess.CompletedProcess([], 1, "", "torch.OutOfMemoryError: full\nmore of it"),
            "torch.OutOfMemoryError: full",
        ),
        (subprocess.CompletedProcess([], 1, "", ""), "it failed without a message"),
        (subprocess.CompletedProcess([], 0, 'a word\n[{"right": true}]\n', ""), ""),
    ],
)
def test_a_part_that_fails_says_why(monkeypatch, done, why):
    def run(*_, **options):
        assert options["timeout"] == 9
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu.run_part(PART, 9) == (why, [] if why else [{"right": True}])
    assert gpu.run_part(PART, 0)[0].startswith("the parts before it took all of")


def test_a_process_prints_its_rows_last(capsys):
    arguments = SIZES | {"name": "SDPA", "dtype": "float32", "shape": asdict(LEAN)}
    gpu._main("check", arguments)
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["right"], row["width"]) == (True, 256)


def test_the_others_go_on_and_all_is_written(tmp_path, monkeypatch, capsys):
    tried = []

    def run_part(part, seconds):
        tried.append(part.name)
        assert 0 < seconds <= part.seconds
        if part.kind != "check":
            return "out of memory", []
        return "", [RIGHT | {"way": part.arguments["name"], "right": part.name != wrong}]

    monkeypatch.setattr(gpu, "run_part", run_part)
    path = tmp_path / "gpu.json"
    wrong = "SDPA, bfloat16"
    assert main(["bench", "--gpu", "--device", "cpu", "--json", str(path)]) == 1
    result = json.loads(path.read_text())
    why = {part["part"]: (part["why"], part["failed"]) for part in result["left_out"]}
    assert why["replay"] == ("out of memory", True)
    assert why["CUDA graphs, float32"] == ("needs a card", False)
    assert why["overhead with 32,512 visual tokens"][1] is False
    assert "compiled, bfloat16" in tried
    assert result["card"] is None
    out = capsys.readouterr().out
    assert "**No card has seen this**" in out
    assert out.count("WRONG") == 1
    assert "| replay | failed: out of memory |" in out


def test_a_card_is_asked_for_all_contexts():
    names = [part.name for part in gpu.parts(gpu.CARD, "cuda:0") if not part.why_not]
    assert [name for name in names if name.startswith("overhead")] == [
        f"overhead with {visual} visual tokens" for visual in ("896", "8,064", "32,512")
    ]
    assert "CUDA graphs, bfloat16" in names
