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
    """Return a table's rows, by column, as values that ``json.dumps`` writes.

    NaNs and infinities become None; digits are kept.
    """
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def interval_text(low: float, high: float, layout: str = ".2f") -> str:
    """Write an interval behind its estimate, as in " [0.10, 0.30]"; or nothing if it has none."""
    return f" [{low:{layout}}, {high:{layout}}]" if np.isfinite(low) else ""


def check_confidence(confidence: float, least: float = 0.0) -> None:
    """Refuse a confidence level that is not strictly between 0 and 1, or is below ``least``.

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
