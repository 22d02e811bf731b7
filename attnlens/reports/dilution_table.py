"""Every number of a check of the theorems, as one tidy table: a row for each number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from attnlens.measures import Dilution, Information, Insertion

COLUMNS = {
    "measure": "string",
    "quantity": "string",
    "statistic": "string",
    "segment": "string",
    "insertion": "string",
    "sample": "Int64",
    "step": "Int64",
    "layer": "Int64",
    "head": "Int64",
    "position": "Float64",
    "value": "float64",
}
"""Columns and their types. What does not apply to a number is missing there. ``position`` is the
fraction of the answer at which a part of it begins."""

_ENDS = {"": "mean", "_low": "low", "_high": "high"}


def tidy(
    dilution: Dilution, insertion: Insertion | None, information: Information | None
) -> pd.DataFrame:
    """Put the numbers of all measures below one another.

    Parameters
    ----------
    dilution, insertion, information
        What the measures of these names give; the last two where they were asked for.

    Returns
    -------
    pandas.DataFrame
        See ``COLUMNS``.
    """
    parts = [*_dilution(dilution)]
    if insertion is not None:
        parts += _insertion(insertion)
    if information is not None:
        parts += _information(information)
    return pd.concat([_complete(part) for part in parts], ignore_index=True)


def _complete(part: pd.DataFrame) -> pd.DataFrame:
    missing = {name: pd.NA for name in COLUMNS if name not in part and name != "value"}
    return part.assign(**missing)[list(COLUMNS)].astype(COLUMNS)


def _scalars(measure: str, values: dict[str, Any], names: tuple[str, ...]) -> pd.DataFrame:
    """Rows of numbers, each with the ends of its interval where it has one."""
    rows = [
        {
            "measure": measure,
            "quantity": name,
            "statistic": statistic,
            "value": float(values[name + end]),
        }
        for name in names
        for end, statistic in _ENDS.items()
        if name + end in values
    ]
    return pd.DataFrame(rows)


def _counts(measure: str, values: dict[str, Any], names: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {"measure": measure, "quantity": n, "statistic": "value", "value": float(values[n])}
        for n in names
    ]
    return pd.DataFrame(rows)


def _melt(measure: str, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Rows of a table's numbers; an ending _low or _high becomes the statistic."""
    melted = table.melt(keys, var_name="quantity", value_name="value")
    ending = melted["quantity"].str.extract(r"_(low|high)$")[0]
    melted["statistic"] = ending.fillna("mean")
    melted["quantity"] = melted["quantity"].str.replace(r"_(low|high)$", "", regex=True)
    return melted.assign(measure=measure)


def _dilution(found: Dilution) -> list[pd.DataFrame]:
    values = vars(found)
    parts = [_counts("dilution", values, ("samples", "too_short"))]
    parts.append(_counts("settings", found.settings, ("confidence",)))
    names = ("key_share_first", "key_share_last", "exponent", "falling", "falling_clearly")
    parts.append(_scalars("dilution", values, (*names, "undefined")))
    for label, change in (
        ("change", found.change),
        ("change_without_sink", found.change_without_sink),
    ):
        terms = {
            f"{name}{end}": getattr(getattr(change, name), statistic)
            for name in ("log_odds", "counts", "preference")
            for end, statistic in _ENDS.items()
        }
        terms |= {f"dilution_share{end}": getattr(change, f"dilution_share{end}") for end in _ENDS}
        parts.append(_scalars(label, terms, ("log_odds", "counts", "preference", "dilution_share")))
    parts += [
        _scalars("evenness", {f"mass_over_key_share{e}": row[s] for e, s in _ENDS.items()},
                 ("mass_over_key_share",)).assign(segment=segment)
        for segment, row in found.evenness.items()
    ]  # fmt: skip
    parts.append(_melt("by_layer", found.by_layer, ["layer"]))
    parts.append(_melt("by_head", found.by_head, ["layer", "head"]))
    steps = pd.DataFrame({"sample": range(found.samples), "value": found.steps})
    parts.append(steps.assign(measure="by_run", quantity="steps", statistic="value"))
    curves = found.curves.melt(["sample", "step"], var_name="quantity", value_name="value")
    parts.append(curves.assign(measure="by_step", statistic="value"))
    return parts


def _insertion(found: Insertion) -> list[pd.DataFrame]:
    return [
        _counts("insertion", vars(found), ("samples",)),
        _scalars("insertion", vars(found), ("exponent",)),
        _melt("insertion", found.table, ["insertion"]),
    ]


def _information(found: Information) -> list[pd.DataFrame]:
    names = ("nats", "standard_error", "sampling_error", "at_least", "by_divergence")
    more = ("at_least_ceiling", "by_divergence_error", "entropy", "rank_correlation")
    curve = found.curve.drop(columns="stop").rename(
        columns={"start": "position", "low": "nats_per_step_low", "high": "nats_per_step_high"}
    )
    return [
        _counts("information", vars(found), ("prompts", "answers", "distinct")),
        _scalars("information", vars(found), (*names, *more)),
        _melt("information", curve, ["position"]),
    ]
