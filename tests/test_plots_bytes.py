"""A figure drawn again, in any format, has the same bytes."""

from __future__ import annotations

import pytest

from attnlens import measures, plots
from attnlens.measures.theorems.synthetic import synthetic_attention


def dilution_runs():
    return [synthetic_attention(12 + i, visual=8, text=4, gap=0.1 * i) for i in range(5)]


def with_a_colour_bar():
    """A figure of a caller's own, whose layout takes several passes."""
    figure = plots.figure.new_figure(5, 4)
    axes = figure.subplots(2, 2)
    figure.colorbar(axes[0, 0].imshow([[0, 1], [2, 3]]), ax=axes[0, 0])
    axes[1, 1].plot([0, 1e5], label="a")
    figure.legend(loc="outside upper center")
    return figure


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        with_a_colour_bar,
        lambda: plots.dilution(measures.dilution(dilution_runs()), width=3.35),
    ],
)
def test_a_figure_gives_the_same_bytes_in_whatever_order_it_is_drawn(make):
    figure = make()
    engine = figure.get_layout_engine()
    drawn = {}
    for file_format in ("png", "pdf", "pdf", "svg", "png", "pdf", "svg", "pdf", "png"):
        drawn.setdefault(file_format, set()).add(plots.figure.render(figure, file_format))
    assert {file_format: len(found) for file_format, found in drawn.items()} == {
        "png": 1,
        "pdf": 1,
        "svg": 1,
    }
    assert figure.get_layout_engine() is engine
    assert all(axes.get_in_layout() for axes in figure.axes)
    again = make()
    assert {plots.figure.render(again, "svg")} == drawn["svg"]
