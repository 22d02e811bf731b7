"""The result of ``attnlens.recover``: labelled arrays, and tables with intervals and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.measures.recovery import area_from, half_life, mean_from
from attnlens.measures.statistics import bootstrap_mean, median_interval, signed_rank

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

UNTOUCHED = "untouched"
"""Name of the run without intervention."""

ROUNDING = 1e-6
"""Smaller rises are float32 rounding: twins run many tokens to a pass, untouched runs one."""


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
            its end, minus the same mean of the untouched run: what is said differs, too.
        ``kl[sample, run, step]`` (nats, of the untouched distribution from the twin's),
        ``hellinger`` (0 to 1)
            change of the next-token distribution. NaN at the steps inside a trigger's text, which
            were predicted before it was known.
        ``first_step[sample, run]``
            first step that the intervention acts on in the forced twin; NaN where it never did.
        ``text``, ``answer``, ``answer_changed``, ``right``, ``steps``, ``seconds``, ``inserted``,
        ``cache_bytes``, ``fired`` [sample, run]
            of the free run; ``right`` is NaN where the truth is not known.

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
        import pandas as pd

        self._check_definition(definition)
        name = "rise_with_copied" if include_copied else "rise"
        rises = self.data[name].sel(definition=definition)
        rows = []
        for sample in range(self.data.sizes["sample"]):
            for run in self.interventions:
                here = {"sample": sample, "run": run}
                one = self.data.isel(sample=sample).sel(run=run)
                first = float(one["first_step"])
                values = dict.fromkeys(("rise", "area", "half_life", "kl", "hellinger"), np.nan)
                if np.isfinite(first):
                    start = int(first)
                    rise = without_rounding(rises.isel(sample=sample).sel(run=run).values)
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
        resamples: int = 9999,
        seed: int = 0,
    ) -> pd.DataFrame:
        """One row for each intervention, over samples.

        Parameters
        ----------
        definition, include_copied
            Which rise.
        confidence, resamples, seed
            Of the bootstrap intervals (paired: samples are drawn with both of their runs).

        Returns
        -------
        pandas.DataFrame
            ``samples`` in which it acted; ``rise``, ``area``, ``free_rise``, ``kl`` and
            ``hellinger`` (means) and ``half_life`` (median), each with the ends of its interval,
            as in ``rise_low`` and ``rise_high`` (bootstrap for means, order statistics for the
            median); ``p_value`` of the Wilcoxon signed-rank test of the rises, ``p_adjusted``
            (Holm, over interventions) and ``effect_size`` (matched-pairs rank-biserial);
            ``answer_changed``, ``right``, ``right_untouched`` (means), ``right_p_value`` (exact
            McNemar) and ``right_p_adjusted`` (Holm); ``inserted``, ``cache_bytes``,
            ``seconds_ratio`` (means over samples, ratio against the untouched run).

        Raises
        ------
        InputError
            If the definition is unknown, or the level or the number of samples is out of range.
        """
        import pandas as pd

        frame = self.per_sample(definition, include_copied=include_copied)
        untouched = self.data.sel(run=UNTOUCHED)
        rows = []
        for run in self.interventions:
            mine = frame[frame["run"] == run]
            acted = mine[np.isfinite(mine["rise"])]
            rise = acted["rise"].to_numpy()
            one = self.data.sel(run=run)
            free = one[f"free_rise{'_with_copied' if include_copied else ''}"]
            free_rise = free.sel(definition=definition).values
            free_rise = free_rise[np.isfinite(free_rise)]
            ends = {
                f"{name}_{end}": value
                for name, values in (
                    ("rise", rise),
                    ("area", acted["area"].to_numpy()),
                    ("free_rise", free_rise),
                    ("kl", acted["kl"].to_numpy()),
                    ("hellinger", acted["hellinger"].to_numpy()),
                )
                for end, value in zip(
                    ("low", "high"),
                    bootstrap_mean(
                        values[np.isfinite(values)],
                        confidence=confidence,
                        resamples=resamples,
                        seed=seed,
                    ),
                    strict=True,
                )
            }
            half = acted["half_life"].to_numpy()
            half_low, half_high = median_interval(half[~np.isnan(half)], confidence)
            p_value, effect = signed_rank(rise)
            rows.append(
                {
                    "intervention": run,
                    "samples": len(acted),
                    "rise": _mean(rise),
                    "rise_low": ends["rise_low"],
                    "rise_high": ends["rise_high"],
                    "area": _mean(acted["area"]),
                    "area_low": ends["area_low"],
                    "area_high": ends["area_high"],
                    "half_life": _median(half),
                    "half_life_low": half_low,
                    "half_life_high": half_high,
                    "free_rise": _mean(free_rise),
                    "free_rise_low": ends["free_rise_low"],
                    "free_rise_high": ends["free_rise_high"],
                    "kl": _mean(acted["kl"]),
                    "kl_low": ends["kl_low"],
                    "kl_high": ends["kl_high"],
                    "hellinger": _mean(acted["hellinger"]),
                    "hellinger_low": ends["hellinger_low"],
                    "hellinger_high": ends["hellinger_high"],
                    "p_value": p_value,
                    "effect_size": effect,
                    "answer_changed": _mean(one["answer_changed"].values),
                    "right": _mean(one["right"].values),
                    "right_untouched": _mean(untouched["right"].values),
                    "right_p_value": mcnemar(untouched["right"].values, one["right"].values),
                    "inserted": _mean(one["inserted"].values),
                    "cache_bytes": _mean(one["cache_bytes"].values),
                    "seconds_ratio": _mean(one["seconds"].values / untouched["seconds"].values),
                }
            )
        table = pd.DataFrame(rows)
        for name in ("p", "right_p"):
            place = table.columns.get_loc(f"{name}_value") + 1
            adjusted = holm(table[f"{name}_value"].to_numpy())
            table.insert(place, f"{name}_adjusted", adjusted)
        return table

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
            ``layer``, ``head``, ``rise`` (mean over samples), ``effect_size``, ``p_value`` of the
            Wilcoxon signed-rank test over samples, ``p_adjusted`` (Benjamini-Hochberg over all
            layers and heads).

        Raises
        ------
        InputError
            If there is no intervention of that name, or the definition is unknown, reduces heads
            itself, or was not kept by head (``detail``).
        """
        import pandas as pd

        if intervention not in self.interventions:
            raise InputError(
                f"no intervention {intervention!r}: there are {', '.join(self.interventions)}"
            )
        self._check_definition(definition)
        name = "rise_by_head_with_copied" if include_copied else "rise_by_head"
        if name not in self.data:
            raise InputError("rises were not kept by head: call recover with detail='head'")
        one = self.data.sel(run=intervention)
        rises_of = one[name].sel(definition=definition).values
        if not np.isfinite(self.data["share_by_head"].sel(definition=definition).values).any():
            raise InputError(f"definition {definition!r} reduces heads itself: use 'mass'")
        means = []
        for sample in range(self.data.sizes["sample"]):
            first = float(one["first_step"].values[sample])
            if np.isfinite(first):
                mean = np.nanmean(rises_of[sample, int(first) :], axis=0)
                means.append(without_rounding(mean))
        layers, heads = self.data.sizes["layer"], self.data.sizes["head"]
        rises = np.array(means).reshape(len(means), layers, heads)
        rows = []
        for layer in range(layers):
            for head in range(heads):
                values = rises[:, layer, head]
                p_value, effect = signed_rank(values)
                rows.append((layer, head, _mean(values), effect, p_value))
        table = pd.DataFrame(rows, columns=["layer", "head", "rise", "effect_size", "p_value"])
        p_values = table["p_value"].to_numpy()
        known = np.isfinite(p_values)
        adjusted = np.full(len(p_values), np.nan)
        if known.any():
            adjusted[known] = stats.false_discovery_control(p_values[known])
        return table.assign(p_adjusted=adjusted)

    def summary(self, definition: str = "mass") -> dict[str, Any]:
        """Return the tables as plain JSON-able values, NaN and infinity as None."""
        plain = self.table(definition).to_json(orient="records")
        with_copied = self.table(definition, include_copied=True).to_json(orient="records")
        return {
            "model": self.data.attrs["model"],
            "samples": self.data.sizes["sample"],
            "definition": definition,
            "never_fired": [
                run for run in self.interventions if not (self.data["fired"].sel(run=run) > 0).any()
            ],
            "interventions": json.loads(plain),
            "interventions_with_copied": json.loads(with_copied),
        }

    def save(self, path: str | Path) -> None:
        """Write every number as a netCDF file, whole or not at all.

        Raises
        ------
        InputError
            If an array is larger than the format holds (2 GiB).
        """
        for name, values in self.data.data_vars.items():
            if values.nbytes >= 2**31:
                raise InputError(
                    f"{name} takes {values.nbytes / 2**30:.1f} GiB, and a netCDF file holds arrays "
                    "of at most 2: call recover with detail='layer' or 'step', or with fewer "
                    "prompts or interventions"
                )
        with write_file(Path(path)) as temporary:
            temporary.write_bytes(bytes(self.data.to_netcdf(engine="scipy")))


def without_rounding(rises: np.ndarray) -> np.ndarray:
    """Set rises that are no larger than float32 rounding to 0; a test would call them an effect."""
    return np.where(np.abs(rises) < ROUNDING, 0.0, rises)


def _mean(values: Any) -> float:
    kept = np.asarray(values, dtype=float)
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if len(kept) else float("nan")


def _median(values: Any) -> float:
    kept = np.asarray(values, dtype=float)
    kept = kept[~np.isnan(kept)]
    return float(np.median(kept)) if len(kept) else float("nan")


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p values for having asked several times (Holm 1979); NaN stays out of the count."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, float(p_values[index]) * (len(order) - place)))
        adjusted[index] = highest
    return adjusted


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided McNemar test of paired right and wrong answers; NaN where none is known."""
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return float("nan")
    lost = int(((before == 1) & (after == 0) & known).sum())
    won = int(((before == 0) & (after == 1) & known).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
