"""The check of the theorems laid out for a terminal: tables below one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attnlens.text import one_line, shortened

if TYPE_CHECKING:
    from attnlens.measures import Dilution, Information, Insertion
    from attnlens.measures.theorems.change import Change

NAME_WIDTH = 24
"""Longest name in a table, in characters."""


def as_text(
    dilution: Dilution, insertion: Insertion | None, information: Information | None
) -> str:
    """Lay out what was found in tables.

    Parameters
    ----------
    dilution, insertion, information
        What the measures of these names give; the last two where they were asked for.

    Returns
    -------
    str
        Lines for a terminal.
    """
    tables = [_dilution(dilution)]
    if insertion is not None:
        tables.append(_insertion(insertion))
    if information is not None:
        tables.append(_information(information))
    return "\n\n".join(tables)


def _dilution(found: Dilution) -> str:
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


def _insertion(found: Insertion) -> str:
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


def _information(found: Information) -> str:
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
