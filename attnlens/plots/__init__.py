"""Figures of traces: pure functions that return a Matplotlib figure.

Figures stay outside pyplot's bookkeeping, and Matplotlib's global parameters as they are.
"""

from __future__ import annotations

from attnlens.plots.averages import averages
from attnlens.plots.definitions import definitions
from attnlens.plots.dependence import dependence
from attnlens.plots.dilution import dilution
from attnlens.plots.figure import save
from attnlens.plots.information import information
from attnlens.plots.insertion import insertion
from attnlens.plots.layers import layers
from attnlens.plots.overlay import overlay
from attnlens.plots.recovery import recovery
from attnlens.plots.routes import routes
from attnlens.plots.tokens import tokens
from attnlens.plots.trend import trend

__all__ = [
    "averages",
    "definitions",
    "dependence",
    "dilution",
    "information",
    "insertion",
    "layers",
    "overlay",
    "recovery",
    "routes",
    "save",
    "tokens",
    "trend",
]
