"""Attention against use: visual mass, and what the prediction loses without the image."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from attnlens.errors import InputError
from attnlens.measures.correlation import spearman
from attnlens.measures.inputs import Span
from attnlens.measures.results import interval_text
from attnlens.measures.statistics import mean_interval
from attnlens.plots.figure import Figure, finish, fix_positions, lay_out, new_figure
from attnlens.plots.regions import name_regions, shade_regions
from attnlens.plots.style import LONE_COLOUR, NARROW, colours, style, width_in_inches
from attnlens.text import counted

if TYPE_CHECKING:
    import xarray as xr

HEIGHT = 2.6
"""Height of the figure without caption, in inches."""
GAP = 0.06
"""Room between stacked panels, as a fraction of their height."""
FLOOR = 1e-6
"""Least divergence that is drawn, in nats: below it is rounding of float32."""
REFERENCES = {
    "removed": "the image removed",
    "blank": "a plain picture in its mean colour",
    "other": "another image",
}
CONFIDENCE = 0.95


def dependence(
    datasets: xr.Dataset | Iterable[xr.Dataset],
    *,
    reference: str | None = None,
    width: str | float = "two-column",
) -> Figure:
    """Draw attention to the image against what the next-token distribution loses without it.

    Parameters
    ----------
    datasets
        What ``attnlens.dependence`` returns, for one run or several.
    reference
        What replaced the image, one of those measured; by default ``blank`` if every run
        has it, or else the first.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): visual mass and Kullback-Leibler divergence (nats) over
        the steps of the first run, regions shaded. Right: one against the other at every step of
        all runs, divergence on a logarithmic axis down to 1e-6 nats; Spearman correlation over
        steps, and for several runs its mean with a 95% interval over runs.

    Raises
    ------
    InputError
        If no dataset is given or one is something else, the reference was not measured in all, the
        width cannot be used, or no step is defined.
    """
    inches = width_in_inches(width)
    runs = _checked(datasets)
    chosen = _reference(runs, reference)
    pairs = [(run["mass"].values, run["kl"].sel(reference=chosen).values) for run in runs]
    mass, kl = (np.concatenate(values) for values in zip(*pairs, strict=True))
    known = np.isfinite(mass) & np.isfinite(kl)
    if not known.any():
        raise InputError("nothing to draw: no step has both a visual mass and a divergence")
    rho = _correlation(pairs)
    with style():
        stacked = inches < NARROW
        height = HEIGHT * (1.9 if stacked else 1)
        figure = new_figure(inches, height)
        above, below, scatter = _panels(figure, stacked)
        regions = _regions(runs[0])
        _draw_run(above, below, runs[0], pairs[0], regions)
        scatter.scatter(
            mass[known],
            np.maximum(kl[known], FLOOR),
            s=4,
            color=colours()["image"],
            alpha=0.35,
            linewidths=0,
            rasterized=True,  # thousands of points would swell a PDF
        )
        scatter.set_yscale("log")
        scatter.minorticks_off()
        scatter.set_xlabel("visual mass (fraction)")
        scatter.set_ylabel("KL divergence (nats)")
        scatter.set_title(_title(rho))
        figure.align_ylabels([above, below])
        caption = _caption(len(runs), chosen, rho, kl[known], stacked)
        if any(region.name == "back" for region in regions):
            caption += " Yellow: <back>, between the lines at its tags."
        finish(figure, height, caption)
        name_regions(above, regions, 0)
        lay_out(figure)
        fix_positions(figure)
    return figure


def _checked(datasets: Any) -> list[xr.Dataset]:
    import xarray as xr

    runs = [datasets] if isinstance(datasets, xr.Dataset) else datasets
    runs = list(runs) if isinstance(runs, Iterable) else [runs]
    if not runs:
        raise InputError("an empty list was given: give at least one result of attnlens.dependence")
    for run in runs:
        if not isinstance(run, xr.Dataset) or not {"kl", "mass"} <= set(run.data_vars):
            raise InputError(
                f"{type(run).__name__} is no result of attnlens.dependence: it needs kl and mass"
            )
    return runs


def _reference(runs: list[xr.Dataset], wanted: str | None) -> str:
    measured = [str(name) for name in runs[0]["reference"].values]
    shared = [n for n in measured if all(n in run["reference"].values for run in runs)]
    if not shared:
        raise InputError("no reference was measured in all runs: measure the same one in each")
    if wanted is None:
        return "blank" if "blank" in shared else shared[0]
    if wanted not in shared:
        raise InputError(
            f"reference {wanted!r} was not measured in all runs: use {', '.join(shared)}"
        )
    return wanted


def _correlation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Spearman's rho over the steps of one run, or its mean over several with an interval."""
    if len(pairs) == 1:
        nan = float("nan")
        return {"rho": spearman(*pairs[0]), "low": nan, "high": nan, "runs": 1}
    values = np.array([spearman(kl, mass) for mass, kl in pairs])
    values = values[np.isfinite(values)]
    low, high = mean_interval(values, CONFIDENCE, within=(-1, 1))
    mean = float(values.mean()) if len(values) else float("nan")
    return {"rho": mean, "low": low, "high": high, "runs": len(values)}


def _panels(figure: Figure, stacked: bool) -> tuple[Any, Any, Any]:
    """Two axes over steps that share x, and one for the scatter."""
    if stacked:
        grid = figure.add_gridspec(3, 1, height_ratios=(1, 1, 2), hspace=GAP)
        places = grid[0], grid[1], grid[2]
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
        places = grid[0, 0], grid[1, 0], grid[:, 1]
    above = figure.add_subplot(places[0])
    below = figure.add_subplot(places[1], sharex=above)
    return above, below, figure.add_subplot(places[2])


def _draw_run(
    above: Any,
    below: Any,
    run: xr.Dataset,
    pair: tuple[np.ndarray, np.ndarray],
    regions: list[Span],
) -> None:
    steps = run["step"].values
    looks = (
        (above, pair[0], colours()["image"], "visual mass"),
        (below, pair[1], LONE_COLOUR, "KL (nats)"),
    )
    for axes, values, colour, name in looks:
        axes.plot(steps, values, color=colour, lw=0.9)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        shade_regions(axes, regions, 0)
    above.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    above.tick_params(labelbottom=False)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xlabel("step (each stands for the token predicted)")


def _regions(run: xr.Dataset) -> list[Span]:
    """Regions of a response: runs of tokens with one name, joined around what they hold."""
    if "region" not in run.coords or not run.sizes["step"]:
        return []
    names = [str(name) for name in run["region"].values]
    tokens = [str(token) for token in run["predicted_token"].values]
    edges = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    spans: dict[int, Span] = {}
    for start, stop in pairwise(edges):
        name, text = names[start], "".join(tokens[start:stop]).lower()
        if not name:
            continue
        if f"<{name}>".lower() not in text:  # the rest of one that holds another
            held = (s.start for s in reversed(spans.values()) if s.name == name and not s.closed)
            start = next(held, start)
        spans[start] = Span(name, start, stop, f"</{name}>".lower() in text)
    return list(spans.values())


def _title(rho: dict[str, float]) -> str:
    if not np.isfinite(rho["rho"]):
        return "Spearman's rho: undefined"
    return f"Spearman's rho = {rho['rho']:.2f}{interval_text(rho['low'], rho['high'])}"


def _caption(
    count: int, reference: str, rho: dict[str, float], kl: np.ndarray, stacked: bool
) -> str:
    first, second = ("Above", "Below") if stacked else ("Left", "Right")
    floor = np.format_float_scientific(FLOOR, trim="-", exp_digits=1)
    under = int((kl < FLOOR).sum())
    over = f"mean over {rho['runs']:.0f} runs"
    if np.isfinite(rho["low"]):
        over += f", {CONFIDENCE:.0%} interval over runs"
    if count == 1:
        over = "over the steps of one run, which give it no interval"
    return (
        f"{first}: visual mass (sum of attention weights on visual keys, mean over layers and "
        "heads) and KL divergence, sum of p log(p / q) over next tokens, of the distribution p "
        f"with the image from q with {REFERENCES.get(reference, reference)} (reference "
        f"{reference}), same tokens forced"
        + (", in the first run. " if count > 1 else ". ")
        + f"{second}: {len(kl):,} steps of {counted(count, 'run')}; the {under:,} below {floor} "
        f"nats are drawn there. Spearman correlation of the values as measured, {over}."
    )
