"""What each way of watching attention costs, by the length of the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.style import LINES, ZERO_LINE, style, width_in_inches

HEIGHT = 2.6
"""Height of a panel, in inches."""
NAMES = {
    "recorded": "attnlens.record",
    "attentions": "output_attentions kept",
    "eager": "with hidden states, too",
    "nnsight": "nnsight",
    "transformer_lens": "TransformerLens",
    "second pass": "second pass, output_attentions",
}
"""What ``attnlens.benchmark.variants.PEERS`` are called in the legend."""
MARKERS = "osD^vP"


def peers(rows: Sequence[Mapping[str, Any]], *, width: str | float = "two-column") -> Figure:
    """Draw time and memory of each way of watching attention, relative to plain generation.

    Parameters
    ----------
    rows
        From ``attnlens.benchmark.peers.compare_peers``, or ``peers.rows`` of what ``attnlens bench
        --peers --json`` writes; those of several runs may be joined.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): time; right: peak memory. A way that took more memory than
        the limit ends in a cross at the size where it did.

    Raises
    ------
    InputError
        If it is given something else, or ``width`` cannot be used.
    """
    found = list(rows)
    needed = {"peer", "visual", "new", "time_ratio", "memory_ratio", "limit_gib", "repeats"}
    if not found or not all(isinstance(row, Mapping) and needed <= set(row) for row in found):
        raise InputError("give the rows that attnlens.benchmark.peers.compare_peers returns")
    inches = width_in_inches(width)
    sizes = sorted({(row["visual"], row["new"]) for row in found})
    ways = [name for name in NAMES if any(row["peer"] == name for row in found)]
    with style():
        from seaborn import color_palette

        palette = color_palette("colorblind")
        panels = two_panels(inches, HEIGHT)
        for axes, key in zip(panels.axes, ("time_ratio", "memory_ratio"), strict=True):
            axes.axhline(1, **ZERO_LINE)
            for place, way in enumerate(ways):
                own = [row for row in found if row["peer"] == way]
                colour = palette[place]
                values = np.full(len(sizes), np.nan)
                for row in own:
                    if row[key] is not None:
                        values[sizes.index((row["visual"], row["new"]))] = row[key]
                look = {
                    "ls": LINES[place % len(LINES)],
                    "marker": MARKERS[place],
                    "markersize": 3.5,
                }
                axes.plot(values, color=colour, label=NAMES[way], **look)
                over = [
                    sizes.index((row["visual"], row["new"]))
                    for row in own
                    if row["memory_ratio"] is None
                ]
                last = np.flatnonzero(~np.isnan(values))
                if over and len(last):
                    ends, height = [last[-1], min(over)], [values[last[-1]]] * 2
                    axes.plot(
                        ends, height, "x-", color=colour, lw=0.6, ms=6, mew=1.6, markevery=[1]
                    )
            axes.set_xticks(range(len(sizes)), [f"{v:,} + {n:,}" for v, n in sizes])
            axes.set(xlim=(-0.3, len(sizes) - 0.7), xlabel="visual + new tokens")
        time, memory = panels.axes
        time.set_ylabel("time (plain generate = 1)")
        memory.set_ylabel("peak memory (plain generate = 1)")
        memory.set_yscale("log", base=2)
        memory.yaxis.set_major_formatter("{x:g}")
        memory.legend(loc="upper left", fontsize=6)
        first, second = panels.places
        limits = " or ".join(sorted({f"{row['limit_gib']:g}" for row in found}))
        repeats = sorted({row["repeats"] for row in found})
        times = " or ".join(map(str, repeats))
        caption = (
            f"{first}: time of a generation, relative to plain generate with SDPA (median of "
            f"{times}, interleaved). {second}: peak memory of the process, weights included. "
            f"Crosses: more than {limits} GiB."
        )
        finish(panels.figure, panels.height, caption)
    return panels.figure
