"""Scores of benchmarks: pure functions of answers, one file each."""

from __future__ import annotations

from attnlens.measures.scores.chair import chair as chair
from attnlens.measures.scores.hallusionbench import hallusionbench as hallusionbench
from attnlens.measures.scores.mme import mme as mme
from attnlens.measures.scores.pope import pope as pope
