"""Tables of recoveries: means over samples with intervals and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from attnlens.measures.paired import holm, mcnemar
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.statistics import (
    mean_interval,
    median_interval,
    proportion_difference,
    proportion_interval,
    signed_rank,
)

UNTOUCHED = "untouched"
"""Name of the run without intervention."""

ROUNDING = 1e-5
"""Rises below this fraction of the largest untouched share are float32 rounding: the passes of two
twins end at other tokens. (Measured: some 1e-6.)"""


def over_samples(
    data: xr.Dataset, frame: pd.DataFrame, free_name: str, definition: str, confidence: float
) -> pd.DataFrame:
    """Return one row for each intervention; see ``Recovery.table``.

    Parameters
    ----------
    data
        The arrays of a ``Recovery``.
    frame
        What ``Recovery.per_sample`` returns.
    free_name, definition
        Name of the variable of free rises, and which definition's.
    confidence
        Level of the intervals.
    """
    untouched = data.sel(run=UNTOUCHED)
    rows = []
    for run in dict.fromkeys(frame["run"]):
        mine = frame[frame["run"] == run]
        one = data.sel(run=run)
        acted = mine[np.isfinite(one["first_step"].values)]
        free = one[free_name].sel(definition=definition).values
        half = acted["half_life"].to_numpy()
        half = half[~np.isnan(half)]
        half_low, half_high = median_interval(half, confidence)
        p_value, effect = signed_rank(_known(acted["rise"]))
        rows.append(
            {
                "intervention": run,
                "samples": len(acted),
                **_with_ends("rise", acted["rise"], confidence),
                **_with_ends("area", acted["area"], confidence),
                "half_life": float(np.median(half)) if len(half) else float("nan"),
                "half_life_low": half_low,
                "half_life_high": half_high,
                "half_lives": len(half),
                **_with_ends("free_rise", free, confidence),
                **_with_ends("kl", acted["kl"], confidence, within=(0, np.inf)),
                **_with_ends("hellinger", acted["hellinger"], confidence, within=(0, 1)),
                "p_value": p_value,
                "effect_size": effect,
                **_proportion("answer_changed", one["answer_changed"], confidence),
                **_proportion("right", one["right"], confidence),
                **_with_count("right_untouched", untouched["right"]),
                **_difference(untouched["right"], one["right"], confidence),
                "right_p_value": mcnemar(untouched["right"].values, one["right"].values),
                **_with_count("inserted", one["inserted"]),
                **_with_count("cache_bytes", one["cache_bytes"]),
                **_with_count("seconds_ratio", one["seconds"].values / untouched["seconds"].values),
            }
        )
    table = pd.DataFrame(rows)
    for name in ("p", "right_p"):
        place = table.columns.get_loc(f"{name}_value") + 1
        adjusted = holm(table[f"{name}_value"].to_numpy())
        table.insert(place, f"{name}_adjusted", adjusted)
    return table


def by_place(rises_of: np.ndarray, shares: np.ndarray, first_steps: np.ndarray) -> pd.DataFrame:
    """Return one row for each layer, or layer and head; see ``Recovery.by_head``.

    Parameters
    ----------
    rises_of
        [sample, step, layer] or [sample, step, layer, head].
    shares
        Untouched shares, likewise.
    first_steps
        [sample]: first step that the intervention acts on; NaN where it did not.
    """
    means = []
    for rises, share, first in zip(rises_of, shares, first_steps, strict=True):
        if np.isfinite(first):
            mean = mean_of_known(np.moveaxis(rises[int(first) :], 0, -1))
            means.append(without_rounding(mean, largest(share)))
    columns = ["layer", "head"][: shares.ndim - 2]
    sizes = shares.shape[2:]
    table = np.array(means).reshape(len(means), *sizes)
    rows: list[dict[str, Any]] = []
    for place in np.ndindex(*sizes):
        values = _known(table[(slice(None), *place)])
        p_value, effect = signed_rank(values)
        row = {**_with_count("rise", values), "effect_size": effect, "p_value": p_value}
        rows.append(dict(zip(columns, place, strict=True)) | row)
    found = pd.DataFrame(rows, columns=[*columns, "rise", "rise_samples", "effect_size", "p_value"])
    p_values = found["p_value"].to_numpy()
    known = np.isfinite(p_values)
    adjusted = np.full(len(p_values), np.nan)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p_values[known])
    return found.assign(p_adjusted=adjusted)


def without_rounding(rises: np.ndarray, level: float) -> np.ndarray:
    """Set rises that are no larger than float32 rounding to 0; a test would call them an effect.

    Parameters
    ----------
    rises
        Changes of a share.
    level
        The largest untouched share, in the same unit.
    """
    return np.where(np.abs(rises) < ROUNDING * level, 0.0, rises)


def largest(shares: np.ndarray) -> float:
    """Return the largest share that is defined; 0 where none is."""
    known = shares[np.isfinite(shares)]
    return float(known.max()) if len(known) else 0.0


def _known(values: Any) -> np.ndarray:
    kept = np.asarray(values, dtype=float)
    return kept[np.isfinite(kept)]


def _mean(values: Any) -> float:
    kept = _known(values)
    return float(kept.mean()) if len(kept) else float("nan")


def _with_count(name: str, values: Any) -> dict[str, float]:
    """Return a mean, and over how many samples it is: not all have a value of each kind."""
    return {name: _mean(values), f"{name}_samples": len(_known(values))}


def _proportion(name: str, values: Any, confidence: float) -> dict[str, float]:
    low, high = proportion_interval(_known(values), confidence)
    return {**_with_count(name, values), f"{name}_low": low, f"{name}_high": high}


def _difference(untouched: Any, run: Any, confidence: float) -> dict[str, float]:
    before, after = np.asarray(untouched, dtype=float), np.asarray(run, dtype=float)
    both = np.isfinite(before) & np.isfinite(after)
    found = proportion_difference(before[both], after[both], confidence)
    names = ("right_change", "right_change_low", "right_change_high")
    return dict(zip(names, found, strict=True))


def _with_ends(name: str, values: Any, confidence: float, **within: Any) -> dict[str, float]:
    low, high = mean_interval(_known(values), confidence, **within)
    return {**_with_count(name, values), f"{name}_low": low, f"{name}_high": high}
