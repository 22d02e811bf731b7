"""Workers on a local Ray cluster: any of them may be killed, as in test_workers.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from test_stores import bucket  # noqa: F401 (a fixture)
from test_workers import (
    check_same_results,
    command,
    data,  # noqa: F401 (a fixture)
)

from attnlens.cli.main import main
from attnlens.runs import chunks
from attnlens.runs.workers import cluster
from attnlens.stores import located, read_bytes

NEEDS_RAY = pytest.mark.skipif(sys.platform != "linux", reason="kills processes")


@pytest.fixture
def ray(monkeypatch) -> None:
    """Let Ray send no statistics, write no token, and find this folder."""
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@NEEDS_RAY
def test_results_are_those_of_one_process(data, tmp_path, monkeypatch, ray):  # noqa: F811
    started = []
    enter = cluster.RayActors.__enter__

    def watched(self):
        started.append(self)
        return enter(self)

    monkeypatch.setattr(cluster.RayActors, "__enter__", watched)
    options = ("--ray", "local")
    check_same_results(data, tmp_path, monkeypatch, lambda: started[0].pids, *options)


@NEEDS_RAY
@pytest.mark.parametrize("stored", [False, True])
def test_answers_are_judged_on_a_cluster(stored, tmp_path, monkeypatch, ray, request):
    monkeypatch.setattr(chunks, "CHUNK", 2)
    records = [{"question": f"q{n}", "answer": "6", "response": str(n)} for n in range(8)]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    one = str(tmp_path / "one")
    many = f"{request.getfixturevalue('bucket')}/many" if stored else str(tmp_path / "many")
    for folder, more in ((one, []), (many, ["--ray", "local", "--workers", "2"])):
        assert main(["score", str(path), "--save_folder", folder, *more]) == 0
    tables = [read_bytes(located(folder) / "score" / "answers.parquet") for folder in (one, many)]
    assert tables[0] == tables[1]


def test_ray_that_is_missing_or_does_not_answer_is_said(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    assert main(command(data, tmp_path, "--ray", "auto")) == 2
    assert "--ray 'auto' needs Ray: pip install attnlens[cluster]" in capsys.readouterr().err
