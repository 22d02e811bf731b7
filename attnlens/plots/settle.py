"""Fix the layout of a figure, so that it is drawn into the same bytes each time."""

from __future__ import annotations

import numpy as np

from attnlens.plots.style import Figure

DIGITS = 6
"""Digits of positions, in fractions of the figure: far finer than a pixel."""


def settle(figure: Figure) -> None:
    """Lay out a figure for good, and round the places of its axes.

    The solver of the constrained layout adds up its terms in an order that differs from run to run.
    With three panels above each other the last bits of their places differ then, and so do the
    names that SVG makes of them.

    Parameters
    ----------
    figure
        With all that it will hold; it is not laid out again afterwards.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = np.round(axes.get_position(original=True).bounds, DIGITS)
        axes.set_position((float(left), float(bottom), float(width), float(height)))
