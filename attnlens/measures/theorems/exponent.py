"""Theorem 3.1, measured: how visual mass depends on the fraction of keys that is visual.

Qwen-LookAgain (arXiv 2505.23558), Theorem 3.1: with ``r = L_c / (L_x + L_c + L_y)`` visual
attention falls as the response of ``L_y`` tokens grows, bounded in proportion to r, if each token
contributes about equally. Equal contributions give ``mass = r``, in proportion; ``mass ~ r **
alpha`` with alpha above 1 falls more steeply, between 0 and 1 less, and below 0 it rises. Alpha
does not say how much of the decay is dilution: with a constant preference it is
(1 - mass) / (1 - r). The split of log-odds does.
"""

from __future__ import annotations

import numpy as np

MAX_STEPS = 256
"""Steps of one run that a fit uses at most, spread evenly: pairs grow with their square."""


def exponents(log_mass: np.ndarray, log_share: np.ndarray) -> np.ndarray:
    """Fit alpha in ``mass ~ share ** alpha`` for many curves, robustly.

    Parameters
    ----------
    log_mass : numpy.ndarray, (steps, ...)
        Natural logarithms of visual mass; undefined steps are left out.
    log_share : numpy.ndarray, (steps,) or (steps, ...)
        Natural logarithms of the fraction of keys that is visual; of the shape of `log_mass` where
        it differs between the curves.

    Returns
    -------
    numpy.ndarray, (...)
        Theil-Sen slopes: medians over pairs of steps of different share (Sen 1968). NaN where
        fewer than three steps are defined.
    """
    curves = log_mass.reshape(len(log_mass), -1)
    if log_share.ndim > 1:
        shares = log_share.reshape(curves.shape)
        each = [exponents(c, s) for c, s in zip(curves.T, shares.T, strict=True)]
        return np.array(each).reshape(log_mass.shape[1:])
    if len(curves) > MAX_STEPS:
        chosen = np.linspace(0, len(curves) - 1, MAX_STEPS).round().astype(int)
        curves, log_share = curves[chosen], log_share[chosen]
    first, second = np.triu_indices(len(curves), 1)
    run = log_share[second] - log_share[first]
    apart = np.isfinite(run) & (np.abs(run) > 1e-12)
    first, second, run = first[apart], second[apart], run[apart]
    found = np.full(curves.shape[1], np.nan)
    for column, curve in enumerate(curves.T):
        if np.isfinite(curve).sum() < 3 or not len(run):
            continue
        with np.errstate(invalid="ignore"):  # two steps without mass
            slopes = (curve[second] - curve[first]) / run
        slopes = slopes[np.isfinite(slopes)]
        if len(slopes):
            found[column] = np.median(slopes)
    return found.reshape(log_mass.shape[1:])
