"""How much of an answer comes from the image: the quantity that the dilution theorem bounds.

Qwen-LookAgain (arXiv 2505.23558) bounds the mutual information ``I(y; c | x)`` of the answer y and
the visual tokens c, given the text x, in proportion to r, the fraction of keys that is visual.

For any distribution q of answers that does not depend on the image,

    E[log p(y | c, x) - log q(y | x)] = I(y; c | x) + KL(p(y | x) || q(y | x)) >= I(y; c | x)

where y is sampled from p(. | c, x). Two choices of q are at hand. The model without the image:
the bound is as loose as the model is lost without one. The average of the model over other
images, which must be drawn without regard to the answer's own: tighter the more images there are.
With the own image among them it bounds the information from below, too, by at most the logarithm
of their number (Poole et al. 2019, arXiv 1905.06922, the leave-one-out bound and InfoNCE) - but
only where own and others are draws from the images that the question may be asked about. Of
images that belong to other questions the lower bound says how well the answer tells its image
among them, and no more. All of it is information under the model's own distribution, whether what
is said is right or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from attnlens.errors import InputError
from attnlens.measures.correlation import spearman
from attnlens.measures.recovery import mean_of_known
from attnlens.measures.results import NAN, Result, check_confidence, interval_text, plain_rows
from attnlens.measures.statistics import mean_interval

OTHERS = "others"
"""The average over other images, as a reference."""
LEAST_BINS = 3
"""Fewer parts of an answer have no rank correlation."""
_NEEDED = ("log_ratio", "kl", "entropy_without", "log_probability", "entropy", "key_share")


@dataclass(frozen=True)
class Information(Result):
    """Estimate of how many nats of an answer come from the image.

    Parameters
    ----------
    prompts, answers : int
        Number of prompts, and of sampled answers over all of them.
    distinct : int
        How many of the answers to one prompt differ, summed over prompts.
    reference : str
        What replaced the image.
    nats, nats_low, nats_high, standard_error : float
        The upper bound: sum over steps of log p(token | image) - log q(token), nats an answer: mean
        over prompts of the mean over a prompt's answers, interval over prompts, and
        standard error over prompts.
    sampling_error : float
        The part of the standard error that more answers to the same prompts would take away; NaN
        with one answer a prompt.
    at_least : float
        From the answer's own image among the others, at most the logarithm of their number: a lower
        bound where all are images that the question may be asked about, else how well the answer
        tells its image among them. NaN where the reference is not ``others``.
    at_least_ceiling : float
        That logarithm, mean over prompts: no ``at_least`` is larger.
    by_divergence, by_divergence_error : float
        The expectation of ``nats``, with each step's log-ratio replaced by its mean over the next
        token (the Kullback-Leibler divergence), and its standard error: less noise. Where the two
        differ by more than their errors, answers were not sampled from the model's own distribution
        (greedy, another temperature, top-k). NaN for ``others``.
    entropy : float
        Sum over steps of the entropy of the next token with the image, nats an answer: how open the
        answer is once the image is known.
    rank_correlation, rank_correlation_low, rank_correlation_high : float
        Spearman correlation over the curve's bins of information per step with r x H, the shape of
        the theorem's bound: mean over prompts, interval over prompts. 1 where
        information falls as the bound does.
    confidence : float
        Level of the intervals.
    curve : pandas.DataFrame
        By part of the answer, means over prompts: ``start``, ``stop`` (fractions of the answer),
        ``nats_per_step`` (log-ratio) with ``low`` and ``high``, ``entropy_without_per_step``
        (H, of the next token without the image; mean over references),
        ``key_share`` (r) and ``key_share_times_entropy`` (r x H).
    """

    prompts: int
    answers: int
    distinct: int
    reference: str
    nats: float
    nats_low: float
    nats_high: float
    standard_error: float
    sampling_error: float
    at_least: float
    at_least_ceiling: float
    by_divergence: float
    by_divergence_error: float
    entropy: float
    rank_correlation: float
    rank_correlation_low: float
    rank_correlation_high: float
    confidence: float
    curve: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """See ``Result``; the curve becomes a list of rows, and the verdict is added."""
        return super().as_dict() | {"curve": plain_rows(self.curve), "verdict": self.verdict()}

    def verdict(self) -> list[str]:
        """Say in sentences what was found, what it can show and what it cannot."""
        interval = interval_text(self.nats_low, self.nats_high)
        error = ""
        if np.isfinite(self.standard_error):
            error = f" (standard error {self.standard_error:.2f} over {self.prompts} prompts)"
        q = {"others": "the average over other images", "removed": "no image"}.get(
            self.reference, f"the reference {self.reference!r}"
        )
        sentences = [
            f"An answer shares at most {self.nats:.2f}{interval} nats with the image{error}, "
            f"against {q}."
        ]
        if self.nats < 0:
            sentences.append(
                "That is below 0, which no information is: an estimate from few answers; the "
                "answers seen are no likelier with their image."
            )
        if np.isfinite(self.at_least):
            sentences.append(
                f"It tells its image among the others by {self.at_least:.2f} nats, of "
                f"{self.at_least_ceiling:.2f} at most with so many images: a lower bound, if the "
                "question may be asked about each of them alike."
            )
        if self.distinct < self.answers:
            sentences.append(
                f"Of {self.answers} sampled answers {self.distinct} are different ones to their "
                "prompt: the others add little."
            )
        sentences.append(
            "These are bounds under the model's own distribution, loose where the model is lost "
            "without its image; they do not say whether what is said is right, and their parts by "
            "step are not bounds."
        )
        if np.isfinite(self.rank_correlation):
            ends = interval_text(self.rank_correlation_low, self.rank_correlation_high)
            sentences.append(
                "Over the parts of an answer it follows the shape of the theorem's bound, r x H, "
                f"with a rank correlation of {self.rank_correlation:.2f}{ends}."
            )
        return sentences


def mutual_information(
    groups: Sequence[Sequence[xr.Dataset]],
    *,
    reference: str | None = None,
    bins: int = 10,
    confidence: float = 0.95,
) -> Information:
    """Bound how much of sampled answers comes from the image.

    Parameters
    ----------
    groups
        For each prompt, what ``attnlens.dependence`` gives for its answers, sampled from the model
        at temperature 1 without top-k and top-p.
    reference
        What replaces the image: a reference of ``attnlens.dependence``, or ``others``, the
        average over all of its other images. ``others`` where there are several, or else
        ``removed`` or the first, when not given.
    bins
        Parts of the answer in the curve.
    confidence : float
        Level of the intervals over prompts.

    Returns
    -------
    Information

    Raises
    ------
    InputError
        If what is given is no list of lists of these, there is no prompt, one has no answer,
        answers were not sampled so, the reference was not measured for each, or a number is out of
        range.
    """
    check_confidence(confidence)
    _check_groups(groups)
    if not isinstance(bins, int) or bins < 2:
        raise InputError(f"bins={bins!r}: give a whole number of at least 2")
    chosen = _reference(groups, reference)
    answers = [[_answer(one, chosen, bins) for one in group] for group in groups]
    totals = [[one["nats"] for one in group] for group in answers]
    means, least, ceiling, smooth, entropies = (
        np.array([np.mean([one[name] for one in group]) for group in answers])
        for name in ("nats", "at_least", "ceiling", "divergence", "entropy")
    )
    low, high = mean_interval(means, confidence)
    tables = np.array(
        [mean_of_known(np.stack([one["table"] for one in group], axis=-1)) for group in answers]
    )  # [prompt, bin, quantity]
    correlations = np.array([spearman(table[:, 0], table[:, 3], LEAST_BINS) for table in tables])
    known = correlations[np.isfinite(correlations)]
    ends = mean_interval(known, confidence, within=(-1, 1))
    return Information(
        prompts=len(groups),
        answers=sum(map(len, groups)),
        distinct=sum(len({one["tokens"] for one in group}) for group in answers),
        reference=chosen,
        nats=float(means.mean()),
        nats_low=low,
        nats_high=high,
        standard_error=_standard_error(means),
        sampling_error=_sampling_error(totals),
        at_least=float(least.mean()),
        at_least_ceiling=float(ceiling.mean()),
        by_divergence=float(smooth.mean()),
        by_divergence_error=_standard_error(smooth),
        entropy=float(entropies.mean()),
        rank_correlation=float(known.mean()) if len(known) else NAN,
        rank_correlation_low=ends[0],
        rank_correlation_high=ends[1],
        confidence=confidence,
        curve=_curve(tables, bins, confidence),
    )


def _check_groups(groups: Any) -> None:
    form = "give a list for each prompt of what attnlens.dependence gives for its answers"
    listed = isinstance(groups, list | tuple) and all(isinstance(g, list | tuple) for g in groups)
    if not listed:
        raise InputError(f"a {type(groups).__name__} of answers is no list of lists: {form}")
    for one in (one for group in groups for one in group):
        if not isinstance(one, xr.Dataset) or not _is_answer(one):
            raise InputError(
                f"an answer is a {type(one).__name__} without log-ratios by reference: {form}"
            )
        if one.attrs.get("altered_by"):
            raise InputError(
                f"an answer was generated with {one.attrs['altered_by']}, and the bound is a mean "
                "over answers sampled from the model's own distribution: generate with "
                "do_sample=True, temperature=1.0, top_k=0, top_p=1.0"
            )
    if not groups or not all(len(group) for group in groups):
        raise InputError("a prompt without answers: give at least one prompt and one answer each")


def _is_answer(one: xr.Dataset) -> bool:
    return "reference" in one.dims and {*_NEEDED} <= {*map(str, one.data_vars)}


def _others(one: xr.Dataset) -> list[str]:
    return [str(name) for name in one["reference"].values if str(name).startswith("other")]


def _reference(groups: Sequence[Sequence[xr.Dataset]], reference: str | None) -> str:
    sets = [one for group in groups for one in group]
    shared = [str(name) for name in groups[0][0]["reference"].values]
    for one in sets:
        shared = [name for name in shared if name in one["reference"].values]
    if any(name.startswith("other") for name in shared):
        shared.append(OTHERS)
    if reference is None and len([n for n in shared if n.startswith("other ")]) > 1:
        reference = OTHERS
    if reference is None:
        reference = "removed" if "removed" in shared or not shared else shared[0]
    if reference not in shared:
        raise InputError(
            f"reference {reference!r} was not measured for each answer: "
            f"use {', '.join(shared) or 'the same references in attnlens.dependence'}"
        )
    return reference


def _answer(one: xr.Dataset, reference: str, bins: int) -> dict[str, Any]:
    """Return the terms of one answer: nats in all, and the table by part of the answer."""
    own = one["log_probability"].values.astype(float)
    # without its tokens, two answers alike to the last bit are taken for one
    predicted = (
        one.coords["predicted_token_id"].values if "predicted_token_id" in one.coords else own
    )
    at_least = ceiling = divergence = NAN
    if reference == OTHERS:
        here = one.sel(reference=_others(one))
        # log-probability of the answer up to each step, under each other image
        so_far = np.cumsum(own - here["log_ratio"].values, axis=1)
        average = scipy.special.logsumexp(so_far, axis=0) - np.log(len(so_far))
        ratio = own - np.diff(average, prepend=0.0)
        among = np.append(so_far[:, -1], own.sum())
        ceiling = float(np.log(len(among)))
        at_least = float(own.sum() - scipy.special.logsumexp(among) + ceiling)
        entropy = here["entropy_without"].mean("reference").values
    else:
        here = one.sel(reference=reference)
        ratio = here["log_ratio"].values.astype(float)
        divergence = float(here["kl"].sum())
        entropy = here["entropy_without"].values
    share = one["key_share"].values
    values = np.stack([ratio, entropy, share, share * entropy], axis=1)
    place = np.arange(len(values)) * bins // len(values)
    table = np.full((bins, values.shape[1]), np.nan)
    for b in np.unique(place):
        table[b] = values[place == b].mean(0)
    return {
        "nats": float(ratio.sum()),
        "tokens": predicted.tobytes(),
        "at_least": at_least,
        "ceiling": ceiling,
        "divergence": divergence,
        "entropy": float(one["entropy"].sum()),
        "table": table,
    }


def _curve(tables: np.ndarray, bins: int, confidence: float) -> pd.DataFrame:
    rows = []
    for b in range(bins):
        here = tables[:, b]
        here = here[np.isfinite(here).all(1)]
        if not len(here):
            continue
        low, high = mean_interval(here[:, 0], confidence)
        nats, entropy, share, bound = here.mean(0).tolist()
        rows.append(
            {
                "start": b / bins,
                "stop": (b + 1) / bins,
                "nats_per_step": nats,
                "low": low,
                "high": high,
                "entropy_without_per_step": entropy,
                "key_share": share,
                "key_share_times_entropy": bound,
            }
        )
    return pd.DataFrame(rows)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else NAN


def _sampling_error(totals: list[list[float]]) -> float:
    """Return the standard error of the mean that comes from few answers a prompt."""
    if any(len(values) < 2 for values in totals):
        return NAN
    variances = [np.var(values, ddof=1) / len(values) for values in totals]
    return float(np.sqrt(np.sum(variances)) / len(totals))
