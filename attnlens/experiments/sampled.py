"""Answers sampled from a model, with what each owes to its image: for the mutual information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from attnlens.experiments.dependence import dependence
from attnlens.experiments.run import run
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt


def sampled_dependence(
    vlm: VLM,
    prompt: Prompt,
    samples: int,
    others: Sequence[Any],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> list[xr.Dataset]:
    """Sample answers from the model's own distribution and measure their dependence on the image.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    samples
        How many answers; the i-th has the seed ``seed + i``.
    others
        Other images that each is measured against.
    max_new_tokens
        Longest answer.
    seed
        Of the first answer.

    Returns
    -------
    list of xarray.Dataset
        What ``attnlens.dependence`` gives, with the references ``removed`` and the other images;
        ``attnlens.measures.mutual_information`` takes one such list for each prompt.
    """
    found = []
    for i in range(samples):
        said = run(
            vlm,
            prompt,
            max_new_tokens,
            seed=seed + i,
            do_sample=True,  # at temperature 1, nothing cut: the bound is a mean over this
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        images = list(others) or None
        found.append(dependence(vlm, said, prompt=prompt, references=("removed",), other=images))
    return found
