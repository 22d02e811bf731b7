"""Figures of traces: pure functions that return a Matplotlib figure.

Figures stay outside pyplot's bookkeeping, and Matplotlib's global parameters as they are.
"""

from __future__ import annotations

from attnlens.plots.attribution import attribution as attribution
from attnlens.plots.averages import averages as averages
from attnlens.plots.correctness import correctness as correctness
from attnlens.plots.definitions import definitions as definitions
from attnlens.plots.dependence import dependence as dependence
from attnlens.plots.dilution import dilution as dilution
from attnlens.plots.edges import edges as edges
from attnlens.plots.figure import save as save
from attnlens.plots.frame_trend import frame_trend as frame_trend
from attnlens.plots.frames import frames as frames
from attnlens.plots.heads import heads as heads
from attnlens.plots.heads import windows as windows
from attnlens.plots.information import information as information
from attnlens.plots.insertion import insertion as insertion
from attnlens.plots.layers import layers as layers
from attnlens.plots.logit_lens import logit_lens as logit_lens
from attnlens.plots.overlay import overlay as overlay
from attnlens.plots.patching import patching as patching
from attnlens.plots.patching import paths as paths
from attnlens.plots.peers import peers as peers
from attnlens.plots.recovery import recovery as recovery
from attnlens.plots.routes import routes as routes
from attnlens.plots.tokens import tokens as tokens
from attnlens.plots.trend import trend as trend

__all__ = sorted(name for name, value in list(vars().items()) if callable(value) and name[0] != "_")
