"""The benchmark's figures: what they count, and that they tell the ways apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from attnlens.benchmark import model as models
from attnlens.benchmark.memory import OverLimit, peak_memory, peak_mib, reset_peak
from attnlens.benchmark.variants import variant_calls
from attnlens.cli.main import main

MIB = 2**20
# weights of a few MiB beside matrices of attention that take 38 MiB a layer
LEAN = models.Shape(layers=2, width=1024, heads=8, key_heads=1, mlp=64, vocabulary=2048)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@on_linux
def test_the_peak_is_what_came_after_the_reset():
    held = bytearray(400 * MIB)
    del held
    base = reset_peak("cpu")
    assert peak_mib("cpu") - base < 50
    held = bytearray(200 * MIB)
    del held
    assert 190 < peak_mib("cpu") - base < 260
    assert reset_peak("cpu") < base + 50


@on_linux
def test_a_new_process_does_not_inherit_the_peak_of_its_parent():
    child = "from attnlens.benchmark.memory import peak_mib; print(peak_mib('cpu'))"
    parent = (
        "import subprocess, sys; held = bytearray(400 << 20); del held\n"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], "
        "capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )
    assert 0 < float(done.stdout) < 200


@pytest.mark.slow
@on_linux
def test_eager_attention_shows_in_the_peak_and_recording_does_not():
    memory = {way: peak_memory(LEAN, "cpu", 1600, 4, way) for way in ("plain", "recorded", "eager")}
    for row in memory.values():
        assert row["rise_mib"] == pytest.approx(row["peak_mib"] - row["base_mib"])
    # the matrices of the prefill, float32; on a busy machine a process varies by some 50 MiB
    kept = 2 * 8 * 1666**2 * 4 / MIB
    assert memory["eager"]["rise_mib"] > memory["plain"]["rise_mib"] + kept
    assert memory["recorded"]["rise_mib"] < memory["plain"]["rise_mib"] + kept / 2
    # the vision tower has windows only: one matrix of all 6,400 patches is 625 MiB
    assert memory["eager"]["rise_mib"] < memory["plain"]["rise_mib"] + kept + 200


@pytest.mark.slow
def test_a_failing_measurement_says_why():
    with pytest.raises(RuntimeError, match=r"memory of 'none' failed(.|\n)*KeyError"):
        peak_memory(LEAN, "cpu", 4, 2, "none")


def test_the_command_prints_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    from attnlens.benchmark import recording

    rises = {"plain": 10.0, "recorded": 12.0, "eager": 300.0}
    asked = []

    def measured(shape, device, visual, new, way):
        asked.append((shape, device, visual, new))
        # the median of the five is reported, not the first nor the highest
        rise = rises[way] + (900.0, 0.0, -5.0, 40.0, -7.0)[(len(asked) - 1) // 3]
        return {"peak_mib": 100 + rise, "base_mib": 100.0, "rise_mib": rise}

    monkeypatch.setattr(recording, "peak_memory", measured)
    monkeypatch.setitem(models.SHAPES, "small", LEAN)
    options = ["--visual", "4", "--new", "3", "--repeats", "1", "--context", "4"]
    path = tmp_path / "figures.json"
    assert main(["bench", *options, "--device", "cpu", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert asked == [(LEAN, "cpu", 4, 3)] * 15
    assert result["same_tokens"] is True
    assert result["rise_mib"] == rises
    assert result["peak_mib"] == {way: 100 + rise for way, rise in rises.items()}
    assert result["memory_ratio"]["eager"] == pytest.approx(400 / 110)
    assert result["time_ratio"]["plain"] == 1
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["seconds"][-2:] == ["rise", "MiB"]
    assert [lines[way][-1] for way in rises] == ["10", "12", "300"]
    assert [row["visual"] for row in result["by_context"]] == [4]


@pytest.mark.slow
def test_a_family_is_measured_through_its_own_processor(tmp_path, monkeypatch, capsys):
    from attnlens.benchmark import recording

    asked = []

    def measured(shape, device, visual, new, way):
        asked.append(shape)
        return {"peak_mib": 100.0, "base_mib": 90.0, "rise_mib": 10.0}

    monkeypatch.setattr(recording, "peak_memory", measured)
    monkeypatch.setitem(models.SHAPES, "small", LEAN)
    options = ["--visual", "40", "--new", "3", "--repeats", "1", "--context", "10"]
    path = tmp_path / "figures.json"
    asked_for = ["bench", "--family", "gemma3", *options, "--device", "cpu", "--json", str(path)]
    assert main(asked_for) == 0
    result = json.loads(path.read_text())
    assert asked == [replace(LEAN, family="gemma3")] * 15
    assert (result["family"], result["visual"]) == ("gemma3", 48)  # three pictures of 16 tokens
    assert result["same_tokens"] is True
    assert [row["visual"] for row in result["by_context"]] == [16]
    assert capsys.readouterr().out.startswith("48 visual tokens, 3 new tokens")


@pytest.mark.parametrize("family", ["gemma3", "llava_onevision"])
def test_eager_attention_of_a_family_gives_the_recorded_mass(family):
    """Also where the cache of a window has dropped keys, and several pictures are shown less."""
    shape = models.Shape(3, 64, 4, 2, 96, 0, family=family)
    vlm, prompt_of = models.build(shape, "cpu")
    prompt = prompt_of(100)
    assert models.visual_tokens(prompt) >= 100
    calls = variant_calls(vlm, prompt, 6)
    recorded, eager = calls["recorded"](), calls["eager"]()
    assert recorded.tokens.equal(eager.tokens)
    assert np.abs(recorded.mass - eager.mass).max() < 1e-5


@pytest.mark.slow
@on_linux
def test_the_memory_of_a_family_is_that_of_its_own_process():
    shape = replace(LEAN, family="llava")
    kept = 2 * 8 * 1600**2 * 4 / MIB  # far more than what varies from process to process
    measured = peak_memory(shape, "cpu", 1600, 2, "eager", 2000.0)
    assert kept < measured["rise_mib"]
    assert measured["peak_mib"] < 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "nope"], "unknown family 'nope': use one of qwen2_5_vl, "),
        (["--family", "llava", "--peers"], "--family llava with --peers, which measures"),
        (["--family", "llava", "--interventions"], "--family llava with --interventions, which"),
    ],
)
def test_a_family_that_cannot_be_measured_is_refused(options, message, monkeypatch, capsys):
    from attnlens.benchmark import recording

    monkeypatch.setattr(recording, "compare", None)  # nothing is measured before
    assert main(["bench", *options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_insertions_are_timed_beside_one_pass(monkeypatch):
    """What is counted: an insertion is far shorter than the run that it stands in."""
    from attnlens.benchmark.interventions import LIMITS, compare_interventions

    monkeypatch.setitem(models.SHAPES, "small", LEAN)
    result = compare_interventions(visual=64, new=12, repeats=1)
    seconds = result["seconds"]
    assert set(LIMITS) < set(result)
    assert all(value > 0 for value in seconds.values())
    assert seconds["insertion"] < seconds["copy"]
    assert result["copy"] == pytest.approx(seconds["insertion"] / seconds["one pass"])
    for name in ("never", "never, ROUTE", "never, by share"):
        assert result[name] == pytest.approx(seconds[name] / seconds["plain"])
    assert result["rounds"] == {name: [result[name]] for name in LIMITS}


def test_every_peer_gives_the_same_mass_and_tokens(tmp_path, monkeypatch, capsys):
    """And one that takes more memory than it may is named, not timed."""
    from attnlens.benchmark import peers

    def measured(shape, device, visual, new, peer, limit):
        assert limit == 2048
        if (peer, visual) == ("eager", 9):
            raise peers.OverLimit
        return {"peak_mib": 300.0 if peer == "attentions" else 100.0}

    monkeypatch.setattr(peers, "peak_memory", measured)
    monkeypatch.setitem(models.SHAPES, "small", LEAN)
    path = tmp_path / "figures.json"
    asked = ["--no_recording", "--context", "--peers", "--peer_sizes", "4x3", "9x6"]
    picture = tmp_path / "figure.svg"
    options = [*asked, "--memory_limit", "2", "--repeats", "1", "--json", str(path)]
    options += ["--figure", str(picture)]
    assert main(["bench", *options, "--device", "cpu"]) == 0
    assert "peak memory" in picture.read_text()
    found = json.loads(path.read_text())["peers"]
    assert [(row["visual"], row["peer"]) for row in found["rows"]] == [
        (visual, peer) for visual in (4, 9) for peer in peers.PEERS
    ]
    for row in found["rows"]:
        if (row["peer"], row["visual"]) == ("eager", 9):
            assert row["seconds"] is row["mass_error"] is row["same_tokens"] is None
            continue
        assert row["same_tokens"]
        assert row["memory_ratio"] == (3 if row["peer"] == "attentions" else 1)
        if row["peer"] != "plain":
            assert row["mass_error"] < 1e-6
            assert row["steps_compared"] == row["new"]
    out = capsys.readouterr().out
    assert "eager               more than 2 GiB of memory" in out
    assert "NO" not in out


def test_other_tokens_are_compared_up_to_where_they_part():
    """The step after the first other token is fed that token, and is not compared."""
    import torch

    from attnlens.benchmark.peers import _agreement
    from attnlens.benchmark.variants import Seen

    exact = np.full((4, 1, 1), 0.5)
    mass = np.array([0.5, 0.625, 0.5, 0.0])[:, None, None]
    plain = torch.tensor([5, 6, 7, 8])
    parted = _agreement(Seen(torch.tensor([5, 9, 7, 8]), mass), plain, exact)
    assert parted == {"mass_error": 0.125, "steps_compared": 2, "same_tokens": False}
    assert _agreement(Seen(plain, mass), plain, exact)["mass_error"] == 0.5


def test_a_size_at_which_plain_takes_too_much_is_left_out(monkeypatch, capsys):
    from attnlens.benchmark import peers

    def measured(shape, device, visual, new, peer, limit):
        if peer == "plain":
            raise peers.OverLimit
        return {"peak_mib": 100.0}

    monkeypatch.setattr(peers, "peak_memory", measured)
    monkeypatch.setitem(models.SHAPES, "small", LEAN)
    asked = ["--no_recording", "--context", "--peers", "--peer_sizes", "4x3", "--device", "cpu"]
    assert main(["bench", *asked]) == 0
    out = capsys.readouterr().out
    assert "plain               more than 8 GiB of memory" in out
    assert "recorded            plain takes more than 8 GiB of memory" in out


@pytest.mark.parametrize(
    ("status", "message"), [(-9, ""), (1, "RuntimeError: [enforce fail] can't allocate memory")]
)
def test_a_process_that_the_system_refuses_memory_is_over_the_limit(monkeypatch, status, message):
    done = subprocess.CompletedProcess([], status, "", message)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(OverLimit):
        peak_memory(LEAN, "cpu", 64, 2, "plain", 2000.0)
    with pytest.raises(RuntimeError, match=f"memory of 'plain' failed: {re.escape(message)}"):
        peak_memory(LEAN, "cpu", 64, 2, "plain")


@pytest.mark.slow
@on_linux
def test_a_process_that_takes_too_much_memory_is_ended():
    assert peak_memory(LEAN, "cpu", 64, 2, "nnsight", 2000.0)["peak_mib"] < 2000
    with pytest.raises(OverLimit, match="plain takes more than 200 MiB"):
        peak_memory(LEAN, "cpu", 64, 2, "plain", 200.0)


def test_a_figure_needs_peers(tmp_path, capsys):
    assert main(["bench", "--figure", str(tmp_path / "figure.pdf")]) == 2
    assert "give --peers, which it draws" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["64", "0x4", "4x1", "4x", "axb"])
def test_a_size_that_is_none_is_refused(size, capsys):
    assert main(["bench", "--peers", "--peer_sizes", size]) == 2
    assert f"--peer_sizes {size!r}: give visual and new tokens" in capsys.readouterr().err
