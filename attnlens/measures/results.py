"""The objects that hold results, and how they become JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

NAN = float("nan")


@dataclass(frozen=True)
class Result:
    """A set of named numbers that can be written as JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that ``json.dumps`` writes without special numbers.

        Returns
        -------
        dict
            Field names and values; NaN and infinities become None, tuples become lists, nested
            results become dictionaries.
        """
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Decay(Result):
    """The trend of visual share over the steps of one trace.

    With fewer than three defined steps every number from `slope` on is NaN.

    Parameters
    ----------
    definition : str
        Definition of the share.
    step_owner : str
        Token that labels a step: ``"predicted"`` or ``"query"``.
    region : str or None
        Region that was measured, if one was asked for.
    start, stop : int or None
        Half-open range of step labels that were used; None if there was no defined step.
    steps : int
        Number of steps with a defined share.
    confidence : float
        Level of the intervals.
    slope, slope_low, slope_high : float
        Theil-Sen slope, in units of the definition per step, and the interval of
        ``attnlens.measures.slope.slope_test``; NaN for fewer than 60 steps.
    line_slope : float
        Slope of the line that the interval and the p value belong to; NaN for fewer than 60 steps.
    half_life, half_life_low, half_life_high : float
        Steps in which the share halves: log(2) over the Theil-Sen slope of its logarithm, with the
        interval that follows from the slope's. Infinite where the share does not fall.
    log_steps : int
        Steps with a positive share, which are those that have a logarithm.
    s : float
        Mann-Kendall statistic: rising pairs of steps minus falling pairs.
    tau : float
        Kendall's tau of the share against the step.
    p_value : float
        Two-sided p of no slope, of the same test; NaN for fewer than 60 steps, which are too few
        to tell.
    """

    definition: str
    step_owner: str
    region: str | None
    start: int | None
    stop: int | None
    steps: int
    confidence: float
    slope: float = NAN
    slope_low: float = NAN
    slope_high: float = NAN
    half_life: float = NAN
    half_life_low: float = NAN
    half_life_high: float = NAN
    log_steps: int = 0
    s: float = NAN
    tau: float = NAN
    line_slope: float = NAN
    p_value: float = NAN

    @property
    def verdict(self) -> str:
        """Falls clearly, rises clearly, no clear trend (all at 5%), or too short to tell."""
        if np.isnan(self.p_value):
            return "too short to tell"
        if self.p_value >= 0.05 or self.tau * self.line_slope <= 0:
            return "no clear trend"
        return "falls clearly" if self.tau < 0 else "rises clearly"

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; with the verdict."""
        return super().as_dict() | {"verdict": self.verdict}


@dataclass(frozen=True)
class GroupDecay(Result):
    """The trend of visual share over several traces.

    Parameters
    ----------
    definition : str
        Definition of the share.
    traces : tuple of Decay
        One result per trace, in the order given.
    samples : int
        Number of traces with a slope.
    confidence : float
        Level of the intervals.
    slope, slope_low, slope_high : float
        Mean of the slopes, in units of the definition per step, with an interval over
        traces (NaN for fewer than eight).
    half_life : float
        Median of the half-lives, in steps; infinite if most shares do not fall.
    """

    definition: str
    traces: tuple[Decay, ...]
    samples: int
    confidence: float
    slope: float
    slope_low: float
    slope_high: float
    half_life: float


@dataclass(frozen=True)
class Refocus(Result):
    """The rise of visual share inside a region over the steps just before it.

    Parameters
    ----------
    definition : str
        Definition of the share.
    step_owner : str
        Token that labels a step: ``"predicted"`` or ``"query"``.
    region : str
        Name of the region.
    occurrence : int
        Which region of that name: 1 for the first.
    unit : str
        What the pairs are: ``"layer x head"``, ``"layer"`` or ``"sample"``.
    units : int
        Number of pairs that were used.
    inside, before : float
        Mean share inside the region and before it, averaged over units.
    rise : float
        ``inside - before``, in units of the definition.
    rise_low, rise_high : float
        Interval of the mean rise over traces (NaN for fewer than eight).
    confidence : float
        Level of the interval.
    p_value : float
        Two-sided Wilcoxon signed-rank p over traces (NaN for fewer than six).
    effect_size : float
        Matched-pairs rank-biserial correlation, from -1 (every unit falls) to 1 (every unit
        rises).
    inside_steps, before_steps : tuple of int
        Steps inside and before, one number per trace.
    shortened : bool
        Whether some trace had fewer steps before the region than inside it.
    """

    definition: str
    step_owner: str
    region: str
    occurrence: int
    unit: str
    units: int
    inside: float
    before: float
    rise: float
    rise_low: float
    rise_high: float
    confidence: float
    p_value: float
    effect_size: float
    inside_steps: tuple[int, ...]
    before_steps: tuple[int, ...]
    shortened: bool


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.as_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as values that ``json.dumps`` writes without special numbers.

    Parameters
    ----------
    table : pandas.DataFrame
        Numbers and texts.

    Returns
    -------
    list of dict
        By column; NaNs and infinities become None, digits are kept.
    """
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def interval_text(low: float, high: float, layout: str = ".2f") -> str:
    """Write an interval behind its estimate, as in " [0.10, 0.30]"; nothing where there is none."""
    return f" [{low:{layout}}, {high:{layout}}]" if np.isfinite(low) else ""


def check_confidence(confidence: float, least: float = 0.0) -> None:
    """Refuse a confidence level that is no probability strictly between 0 and 1.

    Parameters
    ----------
    confidence : float
        Level of an interval, such as 0.95.
    least : float
        Lowest level that is taken, where it is more than 0.

    Raises
    ------
    InputError
        If it is out of range.
    """
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InputError(
            f"Confidence {confidence!r} is not between 0 and 1; give a level such as 0.95."
        )
    if confidence < least:
        raise InputError(f"Confidence {confidence!r} is below {least}; give a level such as 0.95.")
