"""Data of the figures as tidy tables: a row for each value, with names for what it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnlens.measures import shares, visual_share
from attnlens.text import printable

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.experiments.recovery import Recovery
    from attnlens.measures.agreement import Agreement
    from attnlens.measures.theorems.result import Dilution
    from attnlens.recording.trace import Trace

STEPS = 60
"""Steps after the trigger that the figure of recovery shows."""
TIMED = ["seconds_ratio", "seconds_ratio_samples"]
"""Left out of data: a clock never says the same twice."""


def share_table(trace: Trace, definition: str = "look-back") -> pd.DataFrame:
    """Return the curves of a run: a row for each step and curve."""
    return _tidy(shares(trace, definition), "curve")


def layer_table(trace: Trace, definition: str = "mass") -> pd.DataFrame:
    """Return visual share by layer, mean over heads: a row for each step and layer."""
    return _tidy(visual_share(trace, definition, reduction="layer"), "layer")


def head_table(trace: Trace, definition: str = "mass") -> pd.DataFrame:
    """Return visual share by head, mean over layers: a row for each step and head."""
    return _tidy(visual_share(trace, definition, reduction="none").mean("layer"), "head")


def _tidy(values: xr.DataArray, axis: str) -> pd.DataFrame:
    frame = values.rename("share").to_dataframe().reset_index()
    frame["token"] = _tokens(frame["token"])
    return frame[["step", "token", "region", axis, "share"]]


def _tokens(texts: Sequence[Any]) -> list[str]:
    """Texts of tokens on one line each: line breaks and control characters as escapes."""
    return [printable(str(text)).replace("\n", "\\n") for text in texts]


def recovery_table(result: Recovery, definition: str = "mass") -> pd.DataFrame:
    """Return means over samples: a row for each intervention and way of counting."""
    tables = [
        result.table(definition, include_copied=counted).assign(inserted_counted=counted)
        for counted in (False, True)
    ]
    table = pd.concat(tables, ignore_index=True).drop(columns=TIMED)
    table.insert(1, "inserted_counted", table.pop("inserted_counted"))
    return table


def rise_table(result: Recovery, definition: str = "mass") -> pd.DataFrame:
    """Return the mean rise by step since the trigger, inserted tokens not counted."""
    rows = []
    for run in result.interventions:
        one = result.data.sel(run=run)
        rises = one["rise"].sel(definition=definition).values
        firsts = one["first_step"].values
        acted = [
            row[int(first) : int(first) + STEPS]
            for row, first in zip(rises, firsts, strict=True)
            if np.isfinite(first)
        ]
        for step in range(max(map(len, acted), default=0)):
            at = np.array([row[step] for row in acted if step < len(row)])
            at = at[np.isfinite(at)]
            if len(at):
                rows.append((run, step, len(at), at.mean()))
    return pd.DataFrame(rows, columns=["intervention", "steps_since_trigger", "samples", "rise"])


def change_table(found: Dilution) -> pd.DataFrame:
    """Return the change of the log-odds of visual mass and its terms, with intervals."""
    rows = []
    for keys, change in (("all", found.change), ("without the sink", found.change_without_sink)):
        for term in ("log_odds", "counts", "preference"):
            value = getattr(change, term)
            rows.append((keys, term, change.samples, value.mean, value.low, value.high))
    return pd.DataFrame(rows, columns=["keys", "term", "samples", "mean", "low", "high"])


def agreement_tables(found: Agreement) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the curves of definitions, and how well each pair agrees."""
    curves = [
        (name, start, stop, value)
        for name, curve in zip(found.names, found.curves, strict=True)
        for start, stop, value in zip(found.bins[:-1], found.bins[1:], curve, strict=True)
    ]
    pairs = [
        (one, other, found.correlations[i, j], found.runs[i, j], found.low[i, j], found.high[i, j])
        for i, one in enumerate(found.names)
        for j, other in enumerate(found.names)
        if i < j
    ]
    return (
        pd.DataFrame(curves, columns=["definition", "start", "stop", "share_over_mean"]),
        pd.DataFrame(pairs, columns=["definition", "other", "correlation", "runs", "low", "high"]),
    )


def dependence_table(datasets: Sequence[xr.Dataset]) -> pd.DataFrame:
    """Return mass and divergence: a row for each run, step and reference."""
    tables = []
    for number, data in enumerate(datasets):
        frame = data[["kl", "mass"]].to_dataframe().reset_index()
        frame.insert(0, "run", number)
        frame["token"] = _tokens(frame["predicted_token"])
        tables.append(frame[["run", "step", "token", "region", "mass", "reference", "kl"]])
    return pd.concat(tables, ignore_index=True)
