"""The benchmark's figures: what they count, and that they tell the ways apart."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from attnlens.benchmark import model as models
from attnlens.benchmark.memory import peak_memory, peak_mib, reset_peak
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


@on_linux
def test_eager_attention_shows_in_the_peak_and_recording_does_not():
    memory = {}
    # of three processes the lowest: one alone varies upwards, on a busy machine by some 50 MiB
    for way, processes in (("plain", 3), ("recorded", 3), ("eager", 1)):
        found = [peak_memory(LEAN, "cpu", 1024, 4, way) for _ in range(processes)]
        for row in found:
            assert row["rise_mib"] == pytest.approx(row["peak_mib"] - row["base_mib"])
        memory[way] = min(found, key=lambda row: row["rise_mib"])
    kept = 2 * 8 * 1090**2 * 4 / MIB  # the matrices of the prefill, float32
    assert memory["eager"]["rise_mib"] > memory["plain"]["rise_mib"] + kept
    assert memory["recorded"]["rise_mib"] < memory["plain"]["rise_mib"] + kept / 2
    # the vision tower has windows only: one matrix of all 4,096 patches is 256 MiB
    assert memory["eager"]["rise_mib"] < memory["plain"]["rise_mib"] + kept + 200


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
