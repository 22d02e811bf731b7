"""A figure of ``attnlens figures`` with everything that is written beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from attnlens.plots.figure import Figure
    from attnlens.recording.trace import Trace


@dataclass(frozen=True)
class Drawn:
    """A figure with everything that is written beside it.

    Attributes
    ----------
    name
        Of its files.
    title
        What it shows, in one sentence.
    figure
        The figure.
    tables
        Its data, by the suffix of the file's name; the first one has none.
    samples
        What it is made of, with numbers.
    versions
        Of what made the runs.
    note
        What its own caption does not say.
    """

    name: str
    title: str
    figure: Figure
    tables: dict[str, pd.DataFrame]
    samples: str
    versions: str
    note: str = ""


def versions_of(traces: Iterable[Trace]) -> str:
    """Versions of attnlens, torch and transformers that traces note, each text once."""
    found = []
    for trace in traces:
        noted = trace.attrs.get("versions") or {}
        names = (n for n in ("attnlens", "torch", "transformers") if n in noted)
        found.append(", ".join(f"{name} {noted[name]}" for name in names))
    return either(found)


def either(texts: Iterable[str]) -> str:
    """Name each text once, in order, the empty one left out."""
    return " or ".join(sorted(set(texts) - {""}))


def count_runs(traces: Sequence[Trace], mode: str) -> str:
    """Say how many runs of a mode, and how many of them had not ended."""
    count, cut_off = len(traces), sum(bool(trace.cut_off) for trace in traces)
    said = f"{count} run{'' if count == 1 else 's'} of mode {mode}"
    return f"{said} ({cut_off} cut off at the longest length)" if cut_off else said
