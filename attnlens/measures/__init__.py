"""Measures of attention to the image: pure functions of traces.

Attention papers disagree about what attention to the image is, and rankings can flip with the
definition. So every measure takes the name of a definition, and every definition states its
formula, source, denominator and reduction: see ``definitions`` and ``visual_share``.
"""

from __future__ import annotations

from attnlens.measures.agreement import Agreement, agreement
from attnlens.measures.averages import Averages, averages
from attnlens.measures.correlation import correlation
from attnlens.measures.decay import Decay, GroupDecay, decay
from attnlens.measures.definitions import definitions
from attnlens.measures.regions import Refocus, refocus, region_summary
from attnlens.measures.share import shares, visual_share
from attnlens.measures.statistics import TrendTest, mann_kendall
from attnlens.measures.theorems.dilution import dilution
from attnlens.measures.theorems.information import Information, mutual_information
from attnlens.measures.theorems.insertion import Insertion, insertion
from attnlens.measures.theorems.log_odds import log_odds
from attnlens.measures.theorems.result import Dilution
from attnlens.measures.theorems.synthetic import synthetic_attention

__all__ = [
    "Agreement",
    "Averages",
    "Decay",
    "Dilution",
    "GroupDecay",
    "Information",
    "Insertion",
    "Refocus",
    "TrendTest",
    "agreement",
    "averages",
    "correlation",
    "decay",
    "definitions",
    "dilution",
    "insertion",
    "log_odds",
    "mann_kendall",
    "mutual_information",
    "refocus",
    "region_summary",
    "shares",
    "synthetic_attention",
    "visual_share",
]
