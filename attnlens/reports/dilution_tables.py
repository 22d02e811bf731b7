"""Every number of a check of the theorems: as one tidy table, and as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from attnlens.text import one_line, shortened

if TYPE_CHECKING:
    from attnlens.measures import Dilution, Information, Insertion
    from attnlens.measures.theorems.log_odds import Change

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
        Results of these measures; None if they were not measured.

    Returns
    -------
    pandas.DataFrame
        See ``COLUMNS``.
    """
    parts = [*_dilution_rows(dilution)]
    if insertion is not None:
        parts += _insertion_rows(insertion)
    if information is not None:
        parts += _information_rows(information)
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


def _dilution_rows(found: Dilution) -> list[pd.DataFrame]:
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


def _insertion_rows(found: Insertion) -> list[pd.DataFrame]:
    return [
        _counts("insertion", vars(found), ("samples",)),
        _scalars("insertion", vars(found), ("exponent",)),
        _melt("insertion", found.table, ["insertion"]),
    ]


def _information_rows(found: Information) -> list[pd.DataFrame]:
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


NAME_WIDTH = 24
"""Longest name in a table, in characters."""


def as_text(
    dilution: Dilution, insertion: Insertion | None, information: Information | None
) -> str:
    """Lay out what was found in tables.

    Parameters
    ----------
    dilution, insertion, information
        Results of these measures; None if they were not measured.

    Returns
    -------
    str
        Lines for a terminal.
    """
    tables = [_dilution_text(dilution)]
    if insertion is not None:
        tables.append(_insertion_text(insertion))
    if information is not None:
        tables.append(_information_text(information))
    return "\n\n".join(tables)


def _dilution_text(found: Dilution) -> str:
    alpha = (
        _number(found.exponent, ".2f"),
        _interval(found.exponent_low, found.exponent_high, ".2f"),
    )
    even = _number(found.evenness["visual"]["mean"], ".2f")
    rows: list[tuple[str, ...]] = [
        ("all", *alpha, *_terms(found.change, found.samples), even),
        ("no sink", "-", "-", *_terms(found.change_without_sink, found.samples), "-"),
    ]
    rows += [
        (
            str(row["layer"]),
            _number(row["exponent"], ".2f"),
            _interval(row["exponent_low"], row["exponent_high"], ".2f"),
            *(_number(row[name], "+.2f") for name in ("log_odds", "counts", "preference")),
            _number(row["evenness_visual"], ".2f"),
        )
        for row in found.by_layer.to_dict("records")
    ]
    before, after = found.between
    windows = f", from {before} to {after}" if before else ""
    runs = f"{found.samples} run{'' if found.samples == 1 else 's'}"
    title = f"Theorem 3.1, {runs}: mass ~ r^alpha;\nchange of log-odds of visual mass{windows}"
    if any("(" in cell for row in rows[:2] for cell in row[3:6]):
        title += "; (n): over n of the runs"
    names = ("layer", "alpha", _level(found.settings["confidence"]))
    return _table(title, (*names, "log-odds", "= counts", "+ preference", "mass / r"), rows)


def _terms(change: Change, samples: int) -> list[str]:
    """Show the three terms, with the number of runs that have them where that is not all."""
    terms = (change.log_odds, change.counts, change.preference)
    behind = f" ({change.samples})" if 0 < change.samples < samples else ""
    return [_number(term.mean, "+.2f") + behind for term in terms]


def _insertion_text(found: Insertion) -> str:
    rows = [
        (
            shortened(one_line(row["insertion"]), NAME_WIDTH),
            _number(row["key_share"], ".3f"),
            _number(row["mass"], ".3f"),
            _interval(row["mass_low"], row["mass_high"], ".3f"),
            *(
                _number(row[name] if row["inserted"] else math.nan, "+.2f")
                for name in ("log_odds", "counts", "preference")
            ),
        )
        for row in found.table.to_dict("records")
    ]
    prompts = f"{found.samples} prompt{'' if found.samples == 1 else 's'}"
    title = f"Theorem 3.2, {prompts}: visual and inserted keys;\nchange against the untouched twin"
    names = ("inserted", "r'", "mass", _level(found.confidence))
    return _table(title, (*names, "log-odds", "= counts", "+ preference"), rows)


def _information_text(found: Information) -> str:
    rows = [
        (f"at most (against {found.reference})", found.nats, found.nats_low, found.nats_high),
        ("tells its image among the others by", found.at_least, math.nan, math.nan),
        ("of, at most, with so many images", found.at_least_ceiling, math.nan, math.nan),
        ("entropy with the image", found.entropy, math.nan, math.nan),
        (
            "rank correlation with r x H (H: entropy without it)",
            found.rank_correlation,
            found.rank_correlation_low,
            found.rank_correlation_high,
        ),
    ]
    cells = [
        (name, _number(value, ".2f"), _interval(low, high, ".2f"))
        for name, value, low, high in rows
    ]
    title = (
        f"Mutual information of answer and image, nats an answer:\n{found.answers} sampled "
        f"answer{'' if found.answers == 1 else 's'} to {found.prompts} "
        f"prompt{'' if found.prompts == 1 else 's'}"
    )
    return _table(title, ("", "value", _level(found.confidence)), cells)


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be: the first one to the left, numbers to the right."""
    cells = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in cells
    ]
    return "\n".join([title, *lines])


def _level(confidence: float) -> str:
    return f"{confidence:.0%} interval"


def _number(value: Any, layout: str) -> str:
    return format(value, layout) if math.isfinite(value) else "-"


def _interval(low: float, high: float, layout: str) -> str:
    return f"[{low:{layout}}, {high:{layout}}]" if math.isfinite(low) else "-"
