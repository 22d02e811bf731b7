"""Figures of traces: pure functions that return a Matplotlib figure.

Figures stay outside pyplot's bookkeeping, and Matplotlib's global parameters as they are.
"""

from __future__ import annotations

from attnlens.plots.dilution import dilution
from attnlens.plots.layers import layers
from attnlens.plots.overlay import overlay
from attnlens.plots.recovery import recovery
from attnlens.plots.style import save
from attnlens.plots.tokens import tokens
from attnlens.plots.trend import trend

__all__ = ["dilution", "layers", "overlay", "recovery", "save", "tokens", "trend"]
