"""Measures of attention to the image: pure functions of traces.

Attention papers disagree about what attention to the image is, and rankings can flip with the
definition. So every measure takes the name of a definition, and every definition states its
formula, source, denominator and reduction: see ``definitions`` and ``visual_share``.
"""

from __future__ import annotations

from attnlens.measures.agreement import Agreement as Agreement
from attnlens.measures.agreement import agreement as agreement
from attnlens.measures.averages import Averages as Averages
from attnlens.measures.averages import averages as averages
from attnlens.measures.correctness import Correctness as Correctness
from attnlens.measures.correctness import correctness as correctness
from attnlens.measures.correlation import correlation as correlation
from attnlens.measures.decay import Decay as Decay
from attnlens.measures.decay import GroupDecay as GroupDecay
from attnlens.measures.decay import decay as decay
from attnlens.measures.definitions import definitions as definitions
from attnlens.measures.frames import frame_shares as frame_shares
from attnlens.measures.regions import Refocus as Refocus
from attnlens.measures.regions import refocus as refocus
from attnlens.measures.regions import region_summary as region_summary
from attnlens.measures.share import shares as shares
from attnlens.measures.share import visual_share as visual_share
from attnlens.measures.statistics import TrendTest as TrendTest
from attnlens.measures.statistics import mann_kendall as mann_kendall
from attnlens.measures.theorems.dilution import dilution as dilution
from attnlens.measures.theorems.information import Information as Information
from attnlens.measures.theorems.information import mutual_information as mutual_information
from attnlens.measures.theorems.insertion import Insertion as Insertion
from attnlens.measures.theorems.insertion import insertion as insertion
from attnlens.measures.theorems.log_odds import log_odds as log_odds
from attnlens.measures.theorems.result import Dilution as Dilution
from attnlens.measures.theorems.synthetic import synthetic_attention as synthetic_attention

__all__ = sorted(name for name, value in list(vars().items()) if callable(value) and name[0] != "_")
