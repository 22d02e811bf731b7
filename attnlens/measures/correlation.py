"""Rank correlation: of two series, and of attention with its use."""

from __future__ import annotations

import numpy as np
import scipy
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.results import NAN

DEPENDENCES, SHARES = ("kl", "hellinger", "log_ratio"), ("mass", "look_back")
"""What ``correlation`` takes."""
LEAST_STEPS = 4
"""Fewer steps than this have no rank correlation."""


def spearman(a: np.ndarray, b: np.ndarray, least: int = LEAST_STEPS) -> float:
    """Rank correlation of two series over the steps at which both are defined.

    Parameters
    ----------
    a, b : numpy.ndarray, shape (n,)
        NaN where undefined; equal values share their mean rank.
    least : int
        Number of steps that both must be defined at.

    Returns
    -------
    float
        From -1 to 1; NaN for fewer than ``least`` steps or where one of the two is constant.
    """
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < least or np.ptp(a) == 0 or np.ptp(b) == 0:
        return NAN
    return float(np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))[0, 1])


def correlation(
    data: xr.Dataset,
    dependence_name: str = "kl",
    share: str = "mass",
    *,
    reference: str | None = None,
) -> dict[str, float]:
    """Spearman correlation over steps of a step's dependence with its visual share.

    It describes one run, and has no interval: neighbouring steps are alike, so that an interval
    over steps held the truth in 52% of runs. ``attnlens.plots.dependence`` gives the mean over
    several runs with an interval over these.

    Parameters
    ----------
    data
        What ``dependence`` returns.
    dependence_name
        ``kl``, ``hellinger`` or ``log_ratio``.
    share
        ``mass`` or ``look_back``.
    reference
        One of the references measured; when not given, ``blank`` or else the first.

    Returns
    -------
    dict
        ``rho``, NaN where fewer than four steps are defined or one of the two is constant, and
        ``steps``, the number of those that are defined.

    Raises
    ------
    InputError
        If it is given something else, a name is unknown, or the reference was not measured.
    """
    for name, known in (("dependence_name", DEPENDENCES), ("share", SHARES)):
        value = {"dependence_name": dependence_name, "share": share}[name]
        if value not in known:
            raise InputError(f"{name}={value!r}: use one of {', '.join(known)}")
    needed = {dependence_name, share}
    if (
        not isinstance(data, xr.Dataset)
        or "reference" not in data.dims
        or not needed <= {*data.data_vars}
    ):
        raise InputError(
            f"{type(data).__name__} was given: give what attnlens.dependence returns, of one run"
        )
    measured = [str(name) for name in data["reference"].values]
    if reference is None:
        reference = "blank" if "blank" in measured else measured[0]
    if reference not in measured:
        raise InputError(f"reference {reference!r} was not measured: use {', '.join(measured)}")
    a = data[dependence_name].sel(reference=reference).values
    b = data[share].values
    steps = int((np.isfinite(a) & np.isfinite(b)).sum())
    return {"rho": spearman(a, b), "steps": steps}
