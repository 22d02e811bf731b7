"""What the check of Theorem 3.1 found, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnlens.measures.results import Result, interval_text, plain_rows
from attnlens.measures.slope import LEAST_STEPS
from attnlens.measures.theorems.log_odds import Change
from attnlens.text import counted


@dataclass(frozen=True)
class Dilution(Result):
    """What runs say about Theorem 3.1 of Qwen-LookAgain (arXiv 2505.23558).

    Parameters
    ----------
    samples : int
        Number of runs.
    steps : tuple of int
        Steps of each.
    key_share_first, key_share_last : float
        r, the fraction of keys that is visual, at the first and the last step: mean over runs.
    exponent, exponent_low, exponent_high : float
        alpha in ``mass ~ r ** alpha``: mean over runs, with an interval over runs. Mass is
        the mean over layers and heads. 1 is in proportion to r. (Pure dilution gives 1 only where
        mass = r: with a constant preference alpha is (1 - mass) / (1 - r), by the split.)
    falling : float
        Fraction of runs in which mass falls over the steps (Kendall's tau below 0).
    falling_clearly : float
        The same with p below 0.05 (``attnlens.measures.slope.slope_test``), of the runs that
        are long enough to tell; NaN without one.
    too_short : int
        Number of runs that are not: of fewer than 60 steps.
    undefined : float
        Fraction of steps, layers and heads without log-odds, since the image or everything else
        gets no mass there.
    evenness : dict
        By segment: mass over fraction of keys, mean over layers and heads: ``mean``, ``low``,
        ``high`` over runs. The theorem assumes 1 for all.
    change, change_without_sink : Change
        The change of the log-odds of visual mass between the two windows, split.
    between : tuple of str
        The windows, in words.
    settings : dict
        ``layers``, ``include_copied`` and ``confidence``.
    by_layer : pandas.DataFrame
        ``layer``; ``exponent`` (of mass, mean over heads) with ``exponent_low`` and
        ``exponent_high``; ``log_odds``, ``counts`` and ``preference``: mean change over runs and
        heads; ``evenness_SEGMENT`` for each segment: mass over fraction of keys, likewise.
    by_head : pandas.DataFrame
        ``layer``, ``head``, and the same.
    curves : pandas.DataFrame
        One row for each run and step: ``sample``, ``step``, ``key_share``, and ``mass``,
        ``log_odds``, ``counts``, ``preference``, each the mean over layers and heads.
    """

    samples: int
    steps: tuple[int, ...]
    key_share_first: float
    key_share_last: float
    exponent: float
    exponent_low: float
    exponent_high: float
    falling: float
    falling_clearly: float
    too_short: int
    undefined: float
    evenness: dict[str, dict[str, float]]
    change: Change
    change_without_sink: Change
    between: tuple[str, str]
    settings: dict[str, Any]
    by_layer: pd.DataFrame
    by_head: pd.DataFrame
    curves: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; tables by place become lists of rows, curves are left out."""
        plain = super().as_dict()
        del plain["curves"]
        plain["by_layer"] = plain_rows(self.by_layer)
        plain["by_head"] = plain_rows(self.by_head)
        plain["evenness"] = {
            segment: plain_rows(pd.DataFrame([row]))[0] for segment, row in self.evenness.items()
        }
        plain["verdict"] = self.verdict()
        return plain

    def _clearly(self) -> str:
        if self.too_short == self.samples:
            return f"each is too short (under {LEAST_STEPS} steps) to tell from noise"
        of = f" of the {self.samples - self.too_short} of {LEAST_STEPS} steps and more"
        clear = f"{self.falling_clearly:.0%}{of if self.too_short else ''}"
        return f"within a single run the fall is clear (5% level) in {clear}"

    def verdict(self) -> list[str]:
        """Say in sentences what was found, with its figures."""
        sentences = [
            f"The image's part of the keys, r, goes from {self.key_share_first:.3f} to "
            f"{self.key_share_last:.3f}; mass on it goes as r to the power of "
            f"{self.exponent:.2f}{interval_text(self.exponent_low, self.exponent_high)}: "
            f"{_compare(self)}.",
            f"Mass falls over the steps in {self.falling:.0%} of {counted(self.samples, 'run')}; "
            f"{self._clearly()}.",
            self.change.words(*self.between),
        ]
        known = {k: v["mean"] for k, v in self.evenness.items() if np.isfinite(v["mean"])}
        if known:
            least, most = (choose(known, key=lambda k: known[k]) for choose in (min, max))
            here = (
                f"a key of {most!r} gets {known[most]:.2g} times and one of {least!r} "
                f"{known[least]:.2g} times an equal share"
            )
            if known[most] - known[least] < 1e-3:
                here = "it is so"
            sentences.append(f"The theorem gives each key equal weight; here {here}.")
        return sentences


def _compare(found: Dilution) -> str:
    low, high = found.exponent_low, found.exponent_high
    if not np.isfinite(found.exponent):
        return "no run has a trend to fit"
    if not np.isfinite(low):
        return f"{counted(found.samples, 'run')} give no interval"
    if low > 1:
        return "more steeply than in proportion"
    if high < 0:
        return "mass goes the other way"
    if low > 0 and high < 1:
        return "less steeply than in proportion"
    if low > 0:
        return "1, in proportion, is not ruled out"
    if high < 1:
        return "less steeply than in proportion, if at all"
    return "neither proportionality nor independence is ruled out"
