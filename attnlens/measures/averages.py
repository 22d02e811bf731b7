"""Mean visual share over runs of different length, section by section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.definitions import get_definition
from attnlens.measures.inputs import Span, TraceLike, inside, owned_token, regions_of, runs_of
from attnlens.measures.results import Result, check_confidence, plain_rows
from attnlens.measures.share import visual_share
from attnlens.measures.statistics import mean_interval
from attnlens.segments import REGIONS

if TYPE_CHECKING:
    import pandas as pd

WHOLE = "whole"
"""The one section of a run without the region."""
SECTIONS = ("before", "inside", "after", WHOLE)
MOST_BINS = 1000


@dataclass(frozen=True)
class Averages(Result):
    """Mean visual share over runs, on an axis that is normalised section by section.

    Parameters
    ----------
    definition : str
        Definition of the share.
    region : str
        Name of the region that divides a run into sections.
    samples : int
        Number of runs.
    with_region : int
        How many of them have the region.
    confidence : float
        Level of the intervals.
    lengths : dict of str to float
        Mean number of steps of each section, over the runs that have it. Sections that no run has
        are left out.
    table : pandas.DataFrame
        One row for each section and bin: ``section`` (``before``, ``inside``, ``after`` the region,
        or ``whole`` for runs without it), ``bin``, ``start`` and ``stop`` (fractions of the
        section), ``runs``, ``mean``, ``low``, ``high`` (in units of the definition; the interval is
        NaN for fewer than eight runs).
    """

    definition: str
    region: str
    samples: int
    with_region: int
    confidence: float
    lengths: dict[str, float]
    table: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; the table becomes a list of rows."""
        return {**super().as_dict(), "table": plain_rows(self.table)}


def averages(
    traces: TraceLike | Iterable[TraceLike],
    definition: str = "mass",
    *,
    region: str = "back",
    bins: int | Mapping[str, int] = 20,
    layers: int | Sequence[int] | None = None,
    include_copied: bool = False,
    confidence: float = 0.95,
) -> Averages:
    """Average visual share over runs that differ in length.

    A run with the region has three sections: before it, inside it, and after it. The region counts
    from the start of its first to the end of its last occurrence. A run without it is one section.
    A section of n steps is cut into equal bins; step i of it covers the part from i / n to
    (i + 1) / n, and a bin is the mean over the steps in it, each weighted by how much of the bin it
    covers. So a section may have fewer steps than bins. The result is the mean over
    runs, with its interval.

    Parameters
    ----------
    traces : Trace, xarray.Dataset, or any iterable of these
        The runs. Each is measured as it comes, so an iterator may load one at a time.
    definition : str
        One of ``attnlens.measures.definitions``. Steps belong to the region as in
        ``attnlens.measures.region_summary``.
    region : str
        Name of the region, such as ``"back"`` or ``"reflection"``.
    bins : int or dict of str to int
        Number of bins of every section, 1 to 1,000, or of each section by its name (20 for those
        that are not named).
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    include_copied : bool
        Whether visual tokens that were inserted again count as visual.
    confidence : float
        Level of the intervals over runs.

    Returns
    -------
    Averages
        Bins leave out undefined steps, and runs without a defined step in them.

    Raises
    ------
    InputError
        If no trace is given, one has no visual keys, the definition is unknown, the region is
        neither in a trace nor one of ``attnlens.segments.REGIONS``, or a number is out of range.
    """
    import pandas as pd

    check_confidence(confidence)
    chosen = get_definition(definition)
    counts = _checked_bins(bins)
    values: dict[str, list[np.ndarray]] = {name: [] for name in SECTIONS}
    steps: dict[str, list[int]] = {name: [] for name in SECTIONS}
    samples = with_region = 0
    for run in runs_of(traces):  # one after the other: a trace of a large model is large
        share = visual_share(run, chosen.name, layers=layers, include_copied=include_copied)
        samples += 1
        sections = _sections(share, _region(run, region))
        with_region += WHOLE not in sections
        for name, part in sections.items():
            if len(part):
                values[name].append(_binned(part, counts[name]))
                steps[name].append(len(part))
    if not samples:
        raise InputError("An empty list of traces was given; give at least one trace.")
    if not with_region and region not in REGIONS:
        raise InputError(
            f"no trace has a region {region!r}: give one of theirs, such as {', '.join(REGIONS)}"
        )
    rows = []
    for name in SECTIONS:
        for i, column in enumerate(np.array(values[name]).T):
            known = column[np.isfinite(column)]
            low, high = mean_interval(known, confidence, within=(0, np.inf))
            rows.append(
                {
                    "section": name,
                    "bin": i,
                    "start": i / counts[name],
                    "stop": (i + 1) / counts[name],
                    "runs": len(known),
                    "mean": float(known.mean()) if len(known) else float("nan"),
                    "low": low,
                    "high": high,
                }
            )
    columns = ["section", "bin", "start", "stop", "runs", "mean", "low", "high"]
    return Averages(
        definition=chosen.name,
        region=region,
        samples=samples,
        with_region=with_region,
        confidence=confidence,
        lengths={name: float(np.mean(each)) for name, each in steps.items() if each},
        table=pd.DataFrame(rows, columns=columns),
    )


def _checked_bins(bins: Any) -> dict[str, int]:
    """Return the number of bins of each section."""
    chosen = dict(bins) if isinstance(bins, Mapping) else dict.fromkeys(SECTIONS, bins)
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        raise InputError(f"no section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    for count in chosen.values():
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not whole or not 0 < count <= MOST_BINS:
            raise InputError(f"bins is {bins!r}: give whole numbers from 1 to {MOST_BINS:,}")
    return dict.fromkeys(SECTIONS, 20) | chosen


def _region(run: TraceLike, name: str) -> Span | None:
    """Span from the first to the last region of a name."""
    found = [region for region in regions_of(run) if region.name == name]
    if not found:
        return None
    stop = max(region.stop for region in found)
    return Span(name, found[0].start, stop, found[-1].closed)


def _sections(share: xr.DataArray, region: Span | None) -> dict[str, np.ndarray]:
    """Values of a run, section by section."""
    if region is None:
        return {WHOLE: share.values}
    within = inside(share, region)
    token = owned_token(share["step"].values, share.attrs["step_owner"])
    return {
        "before": share.values[token < region.start],
        "inside": share.values[within],
        "after": share.values[token >= region.stop],
    }


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Mean of a section in each bin, its steps weighted by how much of the bin they cover."""
    edges = np.arange(bins + 1) / bins
    ends = np.arange(len(values) + 1) / len(values)
    starts = np.maximum(edges[:-1, None], ends[None, :-1])
    stops = np.minimum(edges[1:, None], ends[None, 1:])
    weights = np.clip(stops - starts, 0, None) * np.isfinite(values)
    weights[weights < 1e-12] = 0  # rounding where two edges meet
    total = weights.sum(1)
    summed = weights @ np.nan_to_num(values)
    return np.divide(summed, total, out=np.full(bins, np.nan), where=total > 0)
