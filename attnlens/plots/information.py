"""How much each part of an answer owes to the image, and the shape of the theorem's bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnlens.plots.figure import Figure, finish, new_figure
from attnlens.plots.results import check_result, interval_ends, interval_note
from attnlens.plots.style import (
    DASHED,
    LONE_COLOUR,
    ZERO_LINE,
    colours,
    style,
    width_in_inches,
)
from attnlens.text import counted

if TYPE_CHECKING:
    from attnlens.measures.theorems.information import Information

HEIGHT = 2.3
"""Height of the figure without caption, in inches."""


def information(result: Information, *, width: str | float = "one-column") -> Figure:
    """Draw log-ratios by part of the answer, and r x H scaled to the same sum.

    Parameters
    ----------
    result
        What ``attnlens.measures.mutual_information`` returns.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Raises
    ------
    InputError
        If it is given something else, or the width cannot be used.
    """
    check_result(result, "Information", "attnlens.measures.mutual_information")
    inches = width_in_inches(width)
    curve = result.curve
    middle = (curve["start"] + curve["stop"]) / 2
    nats = curve["nats_per_step"].to_numpy()
    bound = curve["key_share_times_entropy"].to_numpy()
    scaled = bound * (nats.sum() / bound.sum()) if bound.sum() else bound
    with style():
        figure = new_figure(inches, HEIGHT)
        axes = figure.add_subplot()
        axes.errorbar(
            middle,
            nats,
            yerr=interval_ends(nats, curve["low"], curve["high"]),
            color=colours()["image"],
            marker="o",
            capsize=2,
            label="log-ratio",
        )
        axes.plot(middle, scaled, color=LONE_COLOUR, ls=DASHED, label="r × H, same sum")
        axes.axhline(0, **ZERO_LINE)
        axes.set(xlim=(0, 1), xlabel="part of the answer (fraction of its steps)")
        axes.set_ylabel("log-ratio (nats per step)")
        axes.legend(loc="best")
        instead = {"others": "the average over other images", "removed": "no image"}.get(
            result.reference, "the reference"
        )
        caption = (
            "Mean log-ratio of the sampled token's probability with the image and with "
            f"{instead} ({result.reference}), {counted(result.answers, 'answer')} to "
            f"{counted(result.prompts, 'prompt')}. Its sum bounds the mutual information "
            "of answer and image from above. Dashed: r × H (fraction of visual keys times the next "
            "token's entropy under the reference), the shape of the bound in arXiv 2505.23558, "
            "scaled to the same sum."
        )
        caption += interval_note("Bars", [result.prompts], "prompts", result.confidence)
        finish(figure, HEIGHT, caption)
    return figure
