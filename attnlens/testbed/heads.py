"""Which heads look: attention on the true visual token, and what knocking heads out destroys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.interventions import At, Knockout
from attnlens.interventions.base import Nothing
from attnlens.measures.statistics import with_interval
from attnlens.progress import progress
from attnlens.testbed.forced import forced_pass
from attnlens.testbed.hiding import states_fact
from attnlens.testbed.knockouts import words_right
from attnlens.testbed.looking_again import TAGS, check_request
from attnlens.testbed.samples import Sample, held_out_sample

if TYPE_CHECKING:
    from attnlens.models.load import VLM

COUNTS = (1, 2, 4, 8)
"""How many heads are knocked out together."""
DRAWS = 5
"""Random choices of as many other heads."""

Head = tuple[int, int]
"""Layer and head."""


def looking_heads(vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back") -> dict[str, Any]:
    """Rank heads by how they look at verified facts, and knock the first ones out.

    Heads are ranked on the first half of the scenes, and knocked out on the second.

    Parameters
    ----------
    vlm
        A testbed model.
    scenes
        Number of held-out scenes.
    seed
        Which ones.
    mode
        ``back`` or ``reflection`` (nothing is inserted).

    Returns
    -------
    dict
        ``hit`` [layer][head]: fraction of fact steps at which the most attended visual token is
        the object's own; ``on_object`` [layer][head]: fraction of attention mass on it, mean over
        fact steps; ``ranking``: heads (layer, head) by ``on_object``; ``facts``: number of fact
        steps. ``knockouts``: for each number of heads, facts right (mean over scenes, with 95%
        score intervals) with the image hidden from the first heads of the ranking from the
        verification on (``top``), and from as many others (``random``: mean over draws, with each
        draw's mean); ``untouched`` likewise.

    Raises
    ------
    InputError
        If the mode has no verification, or fewer than four scenes are asked for.
    """
    check_request(mode, scenes, 4)
    samples = [held_out_sample(seed, i, mode) for i in range(scenes)]
    half = scenes // 2
    table = rank(vlm, samples[:half])
    ranking: list[Head] = [tuple(pair) for pair in table["ranking"]]
    rng = np.random.default_rng(seed)
    held = [s for s in samples[half:] if s.scene.objects]
    counts = [c for c in COUNTS if 2 * c <= len(ranking)]
    chosen: dict[tuple[int, int], list[Head]] = {(0, 0): []}
    for count in counts:
        chosen[count, 0] = ranking[:count]
        for draw in range(1, DRAWS + 1):
            others = rng.permutation(len(ranking) - count)[:count] + count
            chosen[count, draw] = [ranking[i] for i in others]
    found: dict[tuple[int, int], list[float]] = {key: [] for key in chosen}
    for sample in progress(held, description=f"knocking heads out, {mode}"):
        shares = facts_right(vlm, sample, list(chosen.values()))
        for key, right in zip(chosen, shares, strict=True):
            found[key].append(right)
    table["knockouts"] = {
        "scenes": len(held),
        "untouched": with_interval(found[0, 0], proportion=True),
        "by_count": {
            count: {
                "heads": [list(h) for h in chosen[count, 0]],
                "top": with_interval(found[count, 0], proportion=True),
                "random": {
                    **with_interval(
                        np.mean([found[count, d] for d in range(1, DRAWS + 1)], axis=0).tolist(),
                        proportion=True,
                    ),
                    "draws": [float(np.mean(found[count, d])) for d in range(1, DRAWS + 1)],
                },
            }
            for count in counts
        },
    }
    return table


def rank(vlm: VLM, samples: list[Sample]) -> dict[str, Any]:
    """Rank heads by their attention mass on the object's own visual token at verified facts."""
    hits, masses, chances = [], [], []
    for sample in progress(samples, description="ranking heads"):
        forced = forced_pass(vlm, sample)
        for step, token in enumerate(forced.truth):
            if states_fact(token):
                hits.append(np.isin(forced.peak[step], token.visual_tokens))
                masses.append(forced.on_object[step])
                chances.append(len(token.visual_tokens) / forced.visual_tokens)
    if not hits:
        raise InputError(f"{len(samples)} scenes hold no object: give more scenes")
    hit, on_object = np.mean(hits, axis=0), np.mean(masses, axis=0)
    order = np.argsort(-on_object, axis=None, kind="stable")
    ranking = [[int(i) for i in np.unravel_index(place, on_object.shape)] for place in order]
    return {
        "scenes": len(samples),
        "facts": len(hits),
        "hit": hit.round(4).tolist(),
        "on_object": on_object.round(4).tolist(),
        "chance": float(np.mean(chances)),
        "ranking": ranking,
    }


def facts_right(vlm: VLM, sample: Sample, choices: list[list[Head]]) -> list[float]:
    """Fraction of verified facts that are the most likely token, with heads knocked out.

    Parameters
    ----------
    vlm
        A testbed model.
    sample
        A sample with at least one object; its true answer is fed in.
    choices
        For each pass, heads (layer, head) that the image is hidden from, from the verification on;
        none leaves it untouched.

    Returns
    -------
    list of float
        One fraction for each choice.
    """
    when = At(TAGS[sample.mode][0], times=1)
    knocked = [Knockout(when=when, heads=heads) if heads else Nothing() for heads in choices]
    truth, rights = words_right(vlm, sample, knocked)
    facts = np.array([states_fact(token) for token in truth])
    return [float(right[facts].mean()) for right in rights]
