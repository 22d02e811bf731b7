"""Theorem 3.2, measured: what inserting visual tokens does to mass on them.

Qwen-LookAgain (arXiv 2505.23558), Theorem 3.2: inserting k visual tokens turns the fraction of keys
that is visual from ``r = L_c / L`` into ``r' = (L_c + k) / (L + k)``, which is larger, and with
equal contributions of all keys attention to the image rises with it. Measured on the same forced
continuation, so that only the insertion differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnlens.errors import InputError
from attnlens.measures.inputs import TraceLike, dataset_of
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import NAN, Result, check_confidence, interval_text, plain_rows
from attnlens.measures.statistics import mean_interval
from attnlens.measures.theorems.exponent import exponents
from attnlens.measures.theorems.log_odds import log_odds


@dataclass(frozen=True)
class Insertion(Result):
    """What insertions do to mass on visual and copied keys together.

    Parameters
    ----------
    samples : int
        Number of prompts.
    exponent, exponent_low, exponent_high : float
        alpha in ``mass ~ r' ** alpha`` over the insertions of one prompt (Theil-Sen): mean over
        prompts, with an interval over them. 1 if all keys weighed alike.
    exponent_samples : int
        Number of prompts that have an exponent.
    saturates_at : str or None
        The insertion from which on no larger one clearly brings more mass: the interval of the gain
        of each larger one over it holds 0 or is below 0. None where there is no such one, and with
        one prompt, which has no interval.
    confidence : float
        Level of the intervals.
    table : pandas.DataFrame
        One row for each insertion, in order of ``key_share``; means over prompts of means over
        steps from where it stands, layers and heads: ``inserted`` (visual tokens), ``key_share``
        (r'), ``mass`` with ends of its interval, ``rising`` (fraction of prompts in which mass is
        above the untouched twin's), and, against the untouched twin, ``log_odds``, ``counts`` and
        ``preference`` with ends.
    """

    samples: int
    exponent: float
    exponent_low: float
    exponent_high: float
    exponent_samples: int
    saturates_at: str | None
    confidence: float
    table: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; the table becomes a list of rows, and the verdict is added."""
        return super().as_dict() | {"table": plain_rows(self.table), "verdict": self.verdict()}

    def verdict(self) -> list[str]:
        """Say in sentences what was found, with its figures: of each insertion, what moves."""
        first, last = self.table.iloc[0], self.table.iloc[-1]
        interval = interval_text(self.exponent_low, self.exponent_high)
        sentence = (
            f"Insertions take r' from {first['key_share']:.3f} to {last['key_share']:.3f}, and "
            f"mass on visual and inserted keys from {first['mass']:.3f} to {last['mass']:.3f} "
            f"({last['insertion']})"
        )
        if np.isfinite(self.exponent):
            sentence += f", as r' to the power of {self.exponent:.2f}{interval}"
        if self.saturates_at is not None:
            sentence += f"; from {self.saturates_at!r} on, more tokens bring no more that is clear"
        sentences = [f"{sentence}."]
        changes = [
            f"{row['insertion']!r} {row['log_odds']:+.2f} = {row['counts']:+.2f} "
            f"{row['preference']:+.2f}"
            for row in self.table.to_dict("records")
            if row["inserted"] > 0 and np.isfinite(row["log_odds"])
        ]
        if changes:
            sentences.append(
                "Against the untouched twin the log-odds of that mass change by key counts and "
                f"preference: {'; '.join(changes)}."
            )
        return sentences


def insertion(
    groups: Iterable[Mapping[str, TraceLike]],
    *,
    layers: int | Sequence[int] | None = None,
    confidence: float = 0.95,
) -> Insertion:
    """Measure Theorem 3.2 on forced twins.

    Parameters
    ----------
    groups
        For each prompt, traces of the same forced response (``attnlens.force``) by name: the first
        one untouched, the others with visual tokens inserted. The same names in each. Each group
        is let go when it has been measured.
    layers : int, sequence of int or None
        Layer indices in the model to use; None uses every recorded layer.
    confidence : float
        Level of the intervals over prompts.

    Returns
    -------
    Insertion

    Raises
    ------
    InputError
        If there is no group, one is no mapping, names differ between groups, traces of a group
        differ in their tokens, one but the first has no inserted token, or a number is out of
        range.
    """
    check_confidence(confidence)
    rows: list[dict[str, list[float]]] = []
    names: list[str] = []
    form = "a list with one for each prompt, as in insertion([{'untouched': ..., 'copy': ...}])"
    if isinstance(groups, Mapping):
        raise InputError(f"one mapping of traces was given: give {form}")
    if not isinstance(groups, Iterable):
        raise InputError(f"{groups!r} was given: give mappings of traces, {form}")
    for number, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise InputError(
                f"group {number} is a {type(group).__name__}: give traces by name, as in "
                "insertion([{'untouched': ..., 'copy': ...}])"
            )
        names = names or list(group)
        if len(names) < 2:
            break
        if list(group) != names:
            raise InputError(
                f"group {number} has traces called {', '.join(group)}, and group 0 "
                f"{', '.join(names)}: give each group the same names in the same order"
            )
        rows.append(_measure(group, number, layers))
    if not rows:
        raise InputError("give at least one group of two traces: untouched, and with an insertion")
    values = {key: np.array([row[key] for row in rows]) for key in rows[0]}  # [prompt, insertion]
    with np.errstate(divide="ignore"):
        alphas = np.array(
            [
                float(exponents(np.log(mass), np.log(share)))
                for mass, share in zip(values["mass"], values["key_share"], strict=True)
            ]
        )
    known = alphas[np.isfinite(alphas)]
    low, high = mean_interval(known, confidence)
    order = np.argsort(values["key_share"].mean(0), kind="stable")
    return Insertion(
        samples=len(rows),
        exponent=float(known.mean()) if len(known) else NAN,
        exponent_low=low,
        exponent_high=high,
        exponent_samples=len(known),
        saturates_at=_saturation([names[i] for i in order], values["mass"][:, order], confidence),
        confidence=confidence,
        table=pd.DataFrame([_row(names[i], values, i, confidence) for i in order]),
    )


def _measure(
    group: Mapping[str, TraceLike], number: int, layers: int | Sequence[int] | None
) -> dict[str, list[float]]:
    tokens, starts = None, []
    for place, (name, trace) in enumerate(group.items()):
        data = dataset_of(trace)
        predicted = data["predicted_token"].values.tolist()
        if tokens is not None and predicted != tokens:
            raise InputError(
                f"trace {name!r} of group {number} says other tokens than the first: give forced "
                "twins (attnlens.force)"
            )
        tokens = predicted
        steps = data["step"].values[data["keys"].sel(segment="copied").values > 0]
        if place and not len(steps):
            raise InputError(f"trace {name!r} of group {number} has no inserted visual token")
        starts += [int(steps[0])] if place else []
    since = max(starts)
    found: dict[str, list[float]] = {}
    for trace in group.values():
        terms = log_odds(trace, layers=layers, include_copied=True)
        copied = dataset_of(trace)["keys"].sel(segment="copied").values
        kept = terms["step"].values >= since
        names = ("mass", "key_share", "log_odds", "preference")
        values = {name: terms[name].values[kept] for name in names}
        # at a head and step without log-odds counts are left out too
        values["counts"] = values["log_odds"] - values["preference"]
        means = {name: float(mean_of_known(of.reshape(-1))) for name, of in values.items()}
        means["inserted"] = float(copied.max())
        for key, value in means.items():
            found.setdefault(key, []).append(value)
    return found


def _row(name: str, values: dict[str, np.ndarray], place: int, confidence: float) -> dict[str, Any]:
    mass = values["mass"][:, place]
    row: dict[str, Any] = {
        "insertion": name,
        "inserted": float(values["inserted"][:, place].mean()),
        "key_share": float(values["key_share"][:, place].mean()),
        "rising": float((mass > values["mass"][:, 0]).mean()) if place else NAN,
    }
    changes = {
        n: values[n][:, place] - values[n][:, 0] for n in ("log_odds", "counts", "preference")
    }
    for key, found in {"mass": mass, **changes}.items():
        within = (0, 1) if key == "mass" else (-np.inf, np.inf)
        low, high = mean_interval(found[np.isfinite(found)], confidence, within=within)
        row |= {key: float(np.nanmean(found)), f"{key}_low": low, f"{key}_high": high}
    return row


def _saturation(names: list[str], masses: np.ndarray, confidence: float) -> str | None:
    """Return the first insertion over which no larger one has a clear gain."""
    if len(masses) < 2:
        return None
    for place in range(len(names) - 1):
        gains = [
            mean_interval(masses[:, later] - masses[:, place], confidence)[0]
            for later in range(place + 1, len(names))
        ]
        if all(low <= 0 for low in gains):
            return names[place]
    return None
