"""What each token of a response loses when edges of attention are cut."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.labels import readable
from attnlens.plots.matrix import check_dataset, draw_matrix
from attnlens.plots.style import style, width_in_inches

HEIGHT = 1.3
ROW = 0.22
"""Height of a figure without rows, and of a row, in inches."""
LONGEST = 10
"""Characters of a token."""
MOST_NAMED = 40
"""Largest number of tokens that are written out."""


def edges(data: xr.Dataset, names: Sequence[str], *, width: str | float = "two-column") -> Figure:
    """Draw the change of each token's log-probability, a row for each cut.

    Parameters
    ----------
    data
        From ``attnlens.lenses.edge_knockout``.
    names
        What each of its edges is called.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        A cell for each cut and step.

    Raises
    ------
    InputError
        If it is given something else, there are more or fewer names than cuts, or ``width`` cannot
        be used.
    """
    check_dataset(data, "change", "edge_knockout", dimension="edges")
    inches = width_in_inches(width)
    if len(names) != data.sizes["edges"]:
        raise InputError(f"{len(names)} names were given: give {data.sizes['edges']}, one a cut")
    height = HEIGHT + ROW * len(names)
    words = [readable(str(word), LONGEST) for word in data["response_token"].values]
    with style():
        figure = new_figure(inches, height)
        axes = figure.add_subplot()
        draw_matrix(axes, data["change"].values, "change of\nlog-probability (nats)")
        axes.set_yticks(range(len(names)), [readable(str(name), 30) for name in names])
        axes.set_xlabel("step")
        if len(words) <= MOST_NAMED:
            axes.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
            axes.set_xlabel("token of the response")
        caption = (
            "Change of the log-probability of each token of the response (teacher forcing) when "
            "edges of attention are cut, one row for each cut."
        )
        finish(figure, height, caption)
    return figure
