"""The result of ``attnlens.recover``: labelled arrays, and tables with intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.recovery import area_from, half_life, mean_from, mean_of_known
from attnlens.measures.results import plain_rows
from attnlens.measures.statistics import (
    holm,
    mcnemar,
    mean_interval,
    median_interval,
    proportion_difference,
    proportion_interval,
    signed_rank,
)
from attnlens.recording.store import RECOVERY, load_dataset, save_dataset
from attnlens.stores import located

UNTOUCHED = "untouched"
"""Name of the run without intervention."""

ROUNDING = 1e-5
"""Rises below this fraction of the largest untouched share are float32 rounding: the passes of two
twins end at different tokens. (Measured: about 1e-6.)"""


class Recovery:
    """What interventions changed against the untouched twin.

    Parameters
    ----------
    data
        ``share[sample, run, definition, step]``, ``share_with_copied``
            visual share of the forced twin in each definition; inserted tokens count as image only
            in the second. Run ``untouched`` is the run without intervention.
        ``rise``, ``rise_with_copied``
            the same, minus the untouched run's at the same step.
        ``share_by_layer[sample, run, definition, step, layer]``, ``rise_by_layer`` (detail
        ``layer`` or ``head``) and ``share_by_head[..., layer, head]``, ``rise_by_head`` (detail
        ``head``), each also ``_with_copied``
            the same by layer, and by head in the definitions that do not reduce heads themselves.
        ``visual[sample, run, step, layer, head]``, ``copied`` (detail ``head``)
            fraction of attention mass on the prompt's visual keys, and on inserted ones.
        ``mass_rise``, ``mass_rise_with_copied`` [sample, run, step, layer, head]
            change of ``visual``, and of ``visual + copied``.
        ``free_rise[sample, run, definition]``, ``free_rise_with_copied``
            mean visual share of the free run over the steps from where the intervention acts to
            its end, minus the same mean of the untouched run: the text differs, too.
        ``kl[sample, run, step]`` (nats, of the untouched distribution from the twin's),
        ``hellinger`` (0 to 1)
            change of the next-token distribution. NaN at the steps inside a trigger's text, which
            were predicted before it was known.
        ``first_step[sample, run]``
            first step that the intervention acts on in the forced twin; NaN where it never did.
        ``text``, ``answer``, ``answer_changed``, ``right``, ``steps``, ``seconds``, ``inserted``,
        ``cache_bytes``, ``fired``, ``never_fired``, ``cut_off`` [sample, run]
            of the free run; ``right`` is NaN where the truth is not known, ``cut_off`` is 1 where
            the answer had not ended at the longest length, ``fired`` counts how
            often the intervention acted, ``never_fired`` names its parts that did not, a line
            each.

        Steps are those of the untouched run, NaN after its end.
    """

    def __init__(self, data: xr.Dataset) -> None:
        self.data = data

    @property
    def interventions(self) -> list[str]:
        """Names of the interventions, in the order given."""
        return [str(r) for r in self.data["run"].values if str(r) != UNTOUCHED]

    def per_sample(self, definition: str = "mass", *, include_copied: bool = False) -> pd.DataFrame:
        """One row for each sample and intervention, over the steps from where it acts.

        Columns ``rise`` (mean), ``area`` (sum, unit x steps), ``half_life`` (steps from the peak
        to half of it; infinite where it never comes down so far), ``kl`` and ``hellinger``
        (means). NaN where the trigger never fired.

        Raises
        ------
        InputError
            If the definition is unknown.
        """
        self._check_definition(definition)
        name = "rise_with_copied" if include_copied else "rise"
        rises = self.data[name].sel(definition=definition)
        shares = self.data["share"].sel(definition=definition, run=UNTOUCHED)
        rows = []
        for sample in range(self.data.sizes["sample"]):
            level = _largest_share(shares.values[sample])
            for run in self.interventions:
                here = {"sample": sample, "run": run}
                one = self.data.isel(sample=sample).sel(run=run)
                first = float(one["first_step"])
                values = dict.fromkeys(("rise", "area", "half_life", "kl", "hellinger"), np.nan)
                if np.isfinite(first):
                    start = int(first)
                    rise = rises.isel(sample=sample).sel(run=run).values
                    rise = _without_rounding(rise, level)
                    values = {
                        "rise": mean_from(rise, start),
                        "area": area_from(rise, start),
                        "half_life": half_life(rise, start),
                        "kl": mean_from(one["kl"].values, start),
                        "hellinger": mean_from(one["hellinger"].values, start),
                    }
                rows.append({**here, **values})
        return pd.DataFrame(rows)

    def _check_definition(self, definition: str) -> None:
        known = self.data["definition"].values.tolist()
        if definition not in known:
            raise InputError(f"unknown definition {definition!r}: use one of {', '.join(known)}")

    def table(
        self,
        definition: str = "mass",
        *,
        include_copied: bool = False,
        confidence: float = 0.95,
    ) -> pd.DataFrame:
        """One row for each intervention, over samples.

        Parameters
        ----------
        definition, include_copied
            Which rise.
        confidence
            Level of the intervals.

        Returns
        -------
        pandas.DataFrame
            ``samples`` in which it acted; ``rise``, ``area``, ``free_rise``, ``kl``,
            ``hellinger``, ``answer_changed`` and ``right`` (means) and ``half_life`` (median),
            each with the ends of its interval, as in ``rise_low`` and ``rise_high`` (Hall's for
            means, Wilson's for ``answer_changed`` and ``right``, order statistics for the median);
            ``p_value`` of the Wilcoxon signed-rank test of the rises, ``p_adjusted`` (Holm, over
            interventions) and ``effect_size`` (matched-pairs rank-biserial); ``right_untouched``
            (mean), ``right_change`` (``right`` minus that, with Tango's interval of paired
            proportions), ``right_p_value`` (McNemar, mid-p) and ``right_p_adjusted`` (Holm);
            ``inserted``, ``cache_bytes``, ``seconds_ratio`` (means over samples, ratio against the
            untouched run).

            An interval is NaN over fewer than 8 samples (means, median), 12 (``answer_changed``,
            ``right``) or 60 (``right_change``); ``p_value`` over fewer than 6, and
            ``right_p_value`` where fewer than 5 answers went from right to wrong or back.

            Each mean says over how many samples it is, as in ``rise_samples``: ``rise``, ``area``,
            ``free_rise``, ``kl`` and ``hellinger`` over those in which it acted and which have a
            value; ``right`` and ``right_untouched`` over those whose true answer is known;
            ``seconds_ratio`` over those with a separate free run (``reuse``); the others over
            all, also where it never acted. ``half_life`` is over the ``half_lives`` samples whose
            rise has a positive peak.

        Raises
        ------
        InputError
            If the definition is unknown, or the level or the number of samples is out of range.
        """
        return _table_of_interventions(
            self.data,
            self.per_sample(definition, include_copied=include_copied),
            f"free_rise{'_with_copied' if include_copied else ''}",
            definition,
            confidence,
        )

    def by_head(
        self, intervention: str, definition: str = "mass", *, include_copied: bool = False
    ) -> pd.DataFrame:
        """Mean rise of visual share by layer and head, from where the intervention acts.

        Parameters
        ----------
        intervention
            Its name.
        definition, include_copied
            Which rise; of the definitions that do not reduce heads themselves.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``head``, ``rise`` (mean over the ``rise_samples`` samples in which it acted
            and which have a value there), ``effect_size``, ``p_value`` of the Wilcoxon signed-rank
            test over samples, ``p_adjusted`` (Benjamini-Hochberg over all layers and heads).

        Raises
        ------
        InputError
            If there is no intervention of that name, or the definition is unknown, reduces heads
            itself, or was not kept by head (``detail``).
        """
        return self._by("head", intervention, definition, include_copied)

    def by_layer(
        self, intervention: str, definition: str = "mass", *, include_copied: bool = False
    ) -> pd.DataFrame:
        """Mean rise of visual share by layer, from where the intervention acts.

        As ``by_head``, without ``head``, and for every definition.

        Raises
        ------
        InputError
            If there is no intervention of that name, or the definition is unknown or was not kept
            by layer (``detail``).
        """
        return self._by("layer", intervention, definition, include_copied)

    def _by(
        self, axis: str, intervention: str, definition: str, include_copied: bool
    ) -> pd.DataFrame:
        if intervention not in self.interventions:
            raise InputError(
                f"no intervention {intervention!r}: there are {', '.join(self.interventions)}"
            )
        self._check_definition(definition)
        name = f"rise_by_{axis}_with_copied" if include_copied else f"rise_by_{axis}"
        if name not in self.data:
            raise InputError(f"rises were not kept by {axis}: call recover with detail={axis!r}")
        of_definition = self.data.sel(definition=definition)
        shares = of_definition[f"share_by_{axis}"].sel(run=UNTOUCHED).values
        if not np.isfinite(shares).any():
            raise InputError(f"definition {definition!r} reduces heads itself: use 'mass'")
        one = of_definition.sel(run=intervention)
        return _table_of_places(one[name].values, shares, one["first_step"].values)

    def summary(self, definition: str = "mass") -> dict[str, Any]:
        """Return the tables as plain JSON-able values, NaN and infinity as None."""
        return {
            "model": self.data.attrs["model"],
            "samples": self.data.sizes["sample"],
            "definition": definition,
            "never_fired": self.never_fired,
            "interventions": plain_rows(self.table(definition)),
            "interventions_with_copied": plain_rows(self.table(definition, include_copied=True)),
        }

    @property
    def never_fired(self) -> list[str]:
        """Interventions, and parts of joined ones, that acted in no sample."""
        silent = []
        for run in self.interventions:
            by_sample = [set(t.split("\n")) for t in self.data["never_fired"].sel(run=run).values]
            parts = sorted(set.intersection(*by_sample) - {""})
            whole = not (self.data["fired"].sel(run=run) > 0).any()
            silent += [run] if whole else [f"{part} (of {run})" for part in parts]
        return silent

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write every number as a Zarr folder, whole or not at all.

        Parameters
        ----------
        path
            The folder, usually ``<name>.zarr``.
        replace
            Whether to write over a recovery that is there.

        Raises
        ------
        InputError
            If the folder is not empty, and ``replace`` is not set or it holds something else than a
            recovery; it cannot be written; or its name ends in ``.nc``.
        """
        save_dataset(RECOVERY, self.data, located(path), replace=replace)

    @classmethod
    def load(cls, path: str | Path) -> Recovery:
        """Read what ``save`` wrote, or a netCDF file of an earlier version.

        Raises
        ------
        InputError
            If there is none, it is damaged or incomplete, is something else, or was written by a
            newer version.
        """
        data, _ = load_dataset(RECOVERY, located(path))
        if not {"sample", "run", "definition"} <= set(data.dims) or "rise" not in data:
            raise InputError(f"{str(path)!r} holds no recovery: give what Recovery.save wrote")
        return cls(data)

    @classmethod
    def join(cls, parts: Sequence[Recovery]) -> Recovery:
        """Put the samples of several results of the same interventions together.

        Raises
        ------
        InputError
            If there is none, or they differ in interventions, model or detail.
        """
        if not parts:
            raise InputError("no recovery was given: give at least one")
        first = parts[0].data
        for part in parts[1:]:
            same = part.data["run"].values.tolist() == first["run"].values.tolist()
            if not same or part.data.attrs != first.attrs or set(part.data) != set(first):
                raise InputError(
                    "the results differ in interventions, model or detail: join those of one sort"
                )
        data = xr.concat([part.data for part in parts], "sample", join="outer")
        return cls(data.assign_attrs(first.attrs))


def _table_of_interventions(
    data: xr.Dataset, frame: pd.DataFrame, free_name: str, definition: str, confidence: float
) -> pd.DataFrame:
    """One row for each intervention; ``frame`` is what ``Recovery.per_sample`` returns."""
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


def _table_of_places(
    rises_of: np.ndarray, shares: np.ndarray, first_steps: np.ndarray
) -> pd.DataFrame:
    """One row for each layer, or layer and head; see ``Recovery.by_head``.

    Rises and untouched shares are [sample, step, layer] or [sample, step, layer, head]; first steps
    are [sample], NaN where the intervention did not act.
    """
    means = []
    for rises, share, first in zip(rises_of, shares, first_steps, strict=True):
        if np.isfinite(first):
            mean = mean_of_known(np.moveaxis(rises[int(first) :], 0, -1))
            means.append(_without_rounding(mean, _largest_share(share)))
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
        adjusted[known] = scipy.stats.false_discovery_control(p_values[known])
    return found.assign(p_adjusted=adjusted)


def _without_rounding(rises: np.ndarray, level: float) -> np.ndarray:
    """Set rises within float32 rounding to 0, since a test would call them an effect.

    ``level`` is the largest untouched share.
    """
    return np.where(np.abs(rises) < ROUNDING * level, 0.0, rises)


def _largest_share(shares: np.ndarray) -> float:
    """Largest defined share; 0 if there is none."""
    known = shares[np.isfinite(shares)]
    return float(known.max()) if len(known) else 0.0


def _known(values: Any) -> np.ndarray:
    kept = np.asarray(values, dtype=float)
    return kept[np.isfinite(kept)]


def _mean(values: Any) -> float:
    kept = _known(values)
    return float(kept.mean()) if len(kept) else float("nan")


def _with_count(name: str, values: Any) -> dict[str, float]:
    """Mean, and number of samples behind it: not all have a value of each kind."""
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
