"""Attention to the image beside correctness: whether right answers look more than wrong ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import DEFINITIONS, get_definition
from attnlens.measures.inputs import TraceLike, inside, regions_of
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import Result, check_confidence, plain_rows
from attnlens.measures.share import visual_share
from attnlens.measures.statistics import LEAST_FOR_MEANS, holm, mean_interval, superiority

if TYPE_CHECKING:
    import pandas as pd

ALL, OUTSIDE = "all", "outside"
"""Every step of an answer, and those in no region."""
NEGLIGIBLE = 0.1
"""How far from 0.5 a probability may be and still count as no relation."""
HIGHER, LOWER, NONE, OPEN = "higher when right", "lower when right", "none", "not known"


class Attention(NamedTuple):
    """What the comparison needs of one trace, as plain values.

    Attributes
    ----------
    regions
        For each definition, the mean share over the steps of each region.
    steps
        For each definition, the numbers of its steps, and the share at each.
    """

    regions: Mapping[str, Mapping[str, float]]
    steps: Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclass(frozen=True)
class Correctness(Result):
    """Attention to the image of right and of wrong answers.

    Parameters
    ----------
    right, wrong : int
        Numbers of answers.
    confidence : float
        Level of the intervals.
    regions : pandas.DataFrame
        One row for each definition and region (``all``: every step; ``outside``: those in no
        region), where some right and some wrong answers have it. ``right_runs``, ``right_mean``,
        ``right_low``, ``right_high``, and the same of ``wrong``: the mean over answers of the mean
        share over the steps of the region, in units of the definition (intervals NaN for fewer than
        eight). ``superiority``, ``superiority_low``, ``superiority_high``: the probability that a
        right answer has the higher share than a wrong one (``statistics.superiority``).
        ``p_value`` (Mann-Whitney) and ``p_adjusted`` (Holm, over all rows). ``relation``:
        ``higher when right`` or ``lower when right`` where ``p_adjusted`` is below 1 - confidence;
        else ``none`` where the interval of ``superiority`` lies within 0.5 +- ``NEGLIGIBLE``; else
        ``not known``.
    steps : pandas.DataFrame
        The same for each definition and ``step``, where eight right and eight wrong answers are
        that long, without tests: neighbouring steps say much the same.
    """

    right: int
    wrong: int
    confidence: float
    regions: pd.DataFrame
    steps: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; tables become lists of rows."""
        tables = {"regions": plain_rows(self.regions), "steps": plain_rows(self.steps)}
        return {**super().as_dict(), **tables}


def correctness(
    runs: Iterable[tuple[TraceLike, bool]],
    *,
    names: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    confidence: float = 0.95,
) -> Correctness:
    """Compare attention to the image between right and wrong answers.

    Answers are independent units. Steps belong to regions as in
    ``attnlens.measures.region_summary``; several regions of one name count together.

    Parameters
    ----------
    runs : iterable of (Trace or xarray.Dataset, bool)
        Each answer's trace and whether it is right. Each is measured as it comes, so an iterator
        may load one at a time; one number per definition and step is kept.
    names : sequence of str or None
        Definitions of attention to the image; None takes all.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    confidence : float
        Level of the intervals, and of the tests behind ``relation``.

    Returns
    -------
    Correctness

    Raises
    ------
    InputError
        If there is no right or no wrong answer, a trace has no visual keys, a name is unknown, or
        the level is out of range.
    """
    chosen = [get_definition(name).name for name in (DEFINITIONS if names is None else names)]
    measured = ((attention_of(trace, chosen, layers), is_right) for trace, is_right in runs)
    return compare(measured, confidence)


def attention_of(
    trace: TraceLike,
    names: Iterable[str] = tuple(DEFINITIONS),
    layers: int | Sequence[int] | None = None,
) -> Attention:
    """Measure what ``compare`` needs of one trace: the first part of ``correctness``.

    Parameters
    ----------
    trace : Trace or xarray.Dataset
        The trace of an answer.
    names, layers
        As in ``correctness``.

    Returns
    -------
    Attention

    Raises
    ------
    InputError
        If the trace has no visual keys, or a name is unknown.
    """
    regions: dict[str, dict[str, float]] = {}
    steps: dict[str, tuple[list[int], list[float]]] = {}
    for name in names:
        share = visual_share(trace, name, layers=layers)
        regions[name] = {
            region: float(mean_of_known(values))
            for region, values in _in_regions(trace, share).items()
        }
        steps[name] = share["step"].values.tolist(), share.values.tolist()
    return Attention(regions, steps)


def compare(runs: Iterable[tuple[Attention, bool]], confidence: float = 0.95) -> Correctness:
    """Compare what was measured of right and of wrong answers: the second part of ``correctness``.

    Parameters
    ----------
    runs : iterable of (Attention, bool)
        What ``attention_of`` gives for each answer's trace, and whether the answer is right.
    confidence : float
        As in ``correctness``.

    Returns
    -------
    Correctness

    Raises
    ------
    InputError
        If there is no right or no wrong answer, or the level is out of range.
    """
    import pandas as pd

    check_confidence(confidence)
    # values by (definition, region or step), then of wrong and of right answers
    by_region: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    by_step: dict[tuple[str, int], tuple[list[float], list[float]]] = {}
    counts = [0, 0]
    for one, is_right in runs:
        counts[is_right] += 1
        for name, means in one.regions.items():
            for region, mean in means.items():
                by_region.setdefault((name, region), ([], []))[is_right].append(mean)
        for name, (steps, shares) in one.steps.items():
            for step, value in zip(steps, shares, strict=True):
                by_step.setdefault((name, step), ([], []))[is_right].append(value)
    wrong, right = counts
    if not wrong or not right:
        raise InputError(
            f"{right} right and {wrong} wrong answers: give some of both to compare them"
        )
    regions = pd.DataFrame(
        [
            {"definition": name, "region": region, **_compared(*groups, confidence)}
            for (name, region), groups in by_region.items()
        ]
    )
    regions = regions[(regions["right_runs"] > 0) & (regions["wrong_runs"] > 0)]
    regions = regions.reset_index(drop=True)
    regions["p_adjusted"] = holm(regions["p_value"].to_numpy())
    regions["relation"] = [_relation(row, confidence) for row in regions.to_dict("records")]
    rows = [
        {"definition": name, "step": step, **_compared(*groups, confidence)}
        for (name, step), groups in by_step.items()
        if min(map(len, groups)) >= LEAST_FOR_MEANS
    ]
    table = pd.DataFrame(rows, columns=None if rows else ["definition", "step"])
    return Correctness(
        right, wrong, confidence, regions, table.drop(columns="p_value", errors="ignore")
    )


def _in_regions(trace: TraceLike, share: xr.DataArray) -> dict[str, np.ndarray]:
    """Values of a run by region."""
    masks: dict[str, np.ndarray] = {}
    outside = np.ones(share.sizes["step"], dtype=bool)
    for region in regions_of(trace):
        mask = inside(share, region)
        masks[region.name] = masks.get(region.name, False) | mask
        outside &= ~mask
    masks[OUTSIDE] = outside
    return {ALL: share.values} | {name: share.values[mask] for name, mask in masks.items()}


def _compared(wrong: list[float], right: list[float], confidence: float) -> dict[str, Any]:
    """Means of both groups with intervals, and how often the right one is higher."""
    row: dict[str, Any] = {}
    groups: list[np.ndarray] = []
    for name, listed in (("right", right), ("wrong", wrong)):
        values = np.array(listed)
        values = values[np.isfinite(values)]
        low, high = mean_interval(values, confidence, within=(0, np.inf))
        row[f"{name}_runs"] = len(values)
        row[f"{name}_mean"] = float(values.mean()) if len(values) else float("nan")
        row |= {f"{name}_low": low, f"{name}_high": high}
        groups.append(values)
    names = ("superiority", "superiority_low", "superiority_high", "p_value")
    return row | dict(zip(names, superiority(groups[0], groups[1], confidence), strict=True))


def _relation(row: dict[Any, Any], confidence: float) -> str:
    if row["p_adjusted"] < 1 - confidence:
        return HIGHER if row["superiority"] > 0.5 else LOWER
    known = np.isfinite(row["superiority_low"])
    ends = row["superiority_low"], row["superiority_high"]
    return NONE if known and max(abs(end - 0.5) for end in ends) <= NEGLIGIBLE else OPEN
