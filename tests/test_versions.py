"""The versions that the tests run with are the ones that they are meant to run with."""

from __future__ import annotations

import os
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from lower_bounds import lower_bounds

WHICH = os.environ.get("ATTNLENS_VERSIONS", "")
"""Set by ``make test-lowest``."""


def requirements() -> list[Requirement]:
    wanted = [Requirement(text) for text in requires("attnlens")]
    return [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_installed_versions_are_within_bounds():
    for requirement in requirements():
        assert requirement.specifier.contains(version(requirement.name)), requirement


@pytest.mark.skipif(WHICH != "lowest", reason="for make test-lowest")
def test_the_lowest_versions_are_installed():
    for line in lower_bounds(requirements()):
        lowest = Requirement(line)
        assert lowest.specifier.contains(version(lowest.name)), line


def test_the_lower_bound_of_each_requirement_is_found():
    texts = ["torch>=2.6,!=2.7.*,<3", "ruff==0.17.6", "zarr>=3,<4; python_version < '3'"]
    assert lower_bounds(map(Requirement, texts)) == ["torch==2.6", "ruff==0.17.6"]
    for text in ("torch", "torch<3"):
        with pytest.raises(ValueError, match="give it one lower bound"):
            lower_bounds([Requirement(text)])
