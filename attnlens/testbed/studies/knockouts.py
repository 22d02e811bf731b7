"""What a true answer loses when the image is hidden from a part of it, or from some heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.interventions import At, AtStep, Intervention, Knockout
from attnlens.interventions.base import Nothing
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.measures.statistics import with_interval
from attnlens.progress import progress
from attnlens.recording.response import token_texts
from attnlens.testbed.studies.forced_pass import forced_pass
from attnlens.testbed.studies.looking_again import REASONING, TAGS, check_request, mean_text
from attnlens.testbed.studies.scoring import prompt_of
from attnlens.testbed.studies.study import pointing
from attnlens.testbed.world.samples import Sample, TokenTruth, held_out_sample, token_truth

if TYPE_CHECKING:
    from attnlens.models.load import VLM

GROUPS = {
    "listed": "words of the description that only the image determines",
    "reasoned": "words of the reasoning that the text before determines",
    "facts": "facts of the verification, which only the image determines",
    "names": "words of the verification that the text before determines",
    "restated": "words after the verification that the text before determines",
}
"""Groups of an answer's words, by name."""


HEAD_COUNTS = (1, 2, 4, 8)
"""Numbers of heads that are knocked out together."""
RANDOM_CHOICES = 5
"""How often as many other heads are chosen at random."""

Head = tuple[int, int]
"""Layer and head."""


def spans(mode: str) -> dict[str, Intervention]:
    """Return the parts of an answer that the image is hidden from, by name."""
    opening, closing = TAGS[mode]
    return {
        "nothing": Nothing(),
        "in summary and description": Knockout(when=AtStep(1), until=REASONING),
        "in the reasoning": Knockout(when=REASONING, until=At(opening, times=1)),
        "in the verification": Knockout(when=At(opening), until=At(closing)),
        "from the verification on": Knockout(when=At(opening, times=1)),
    }


def knock_outs(vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back") -> dict[str, Any]:
    """Hide the image from a part of true answers, and count the words that stay the most likely.

    The true answer is fed in each time, so the words compared are always the same.

    Parameters
    ----------
    vlm, scenes, seed
        A testbed model; how many and which held-out scenes.
    mode
        ``back`` or ``reflection`` (nothing is inserted).

    Returns
    -------
    dict
        ``rows``: for each of ``spans``, the fraction of each of ``GROUPS`` that is right: mean over
        the scenes with such words, with 95% score intervals over scenes. ``scenes``.

    Raises
    ------
    InputError
        If the mode has no verification, or there are fewer than two scenes.
    """
    check_request(mode, scenes, 2)
    named = spans(mode)
    found: dict[str, dict[str, list[float]]] = {
        span: {group: [] for group in GROUPS} for span in named
    }
    for index in progress(range(scenes), description=f"hiding the image, {mode}"):
        sample = held_out_sample(seed, index, mode)
        truth, rights = words_right(vlm, sample, list(named.values()))
        group_of = np.array([_group(token) for token in truth])
        for group in set(GROUPS).intersection(group_of.tolist()):
            for span, right in zip(named, rights, strict=True):
                found[span][group].append(float(right[group_of == group].mean()))
    rows = {
        span: {group: with_interval(values, proportion=True) for group, values in groups.items()}
        for span, groups in found.items()
    }
    return {"scenes": scenes, "rows": rows}


def words_right(
    vlm: VLM, sample: Sample, interventions: Sequence[Intervention]
) -> tuple[list[TokenTruth], list[np.ndarray]]:
    """Feed a true answer under each intervention, and check which words are the most likely.

    Returns
    -------
    list of TokenTruth, list of bool [tokens]
        Truth of the answer's tokens; for each intervention, which of them are right.
    """
    prompt = prompt_of(vlm, sample)
    ids = vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    truth = token_truth(sample, token_texts(vlm.tokenizer, ids))
    rights = []
    for intervention in interventions:
        with ForcedSession(vlm, prompt, intervention) as session:
            rights.append(session.force(ids).argmax(-1).numpy() == np.array(ids))
    return truth, rights


def _group(token: TokenTruth) -> str:
    if token.must_look:
        return {"verification": "facts", "description": "listed"}.get(token.section, "")
    groups = {"reasoning": "reasoned", "verification": "names", "conclusion": "restated"}
    return groups.get(token.section, "")


def table_text(table: dict[str, Any]) -> str:
    """Write what ``knock_outs`` returns as a table with a line per part of the answer."""
    names = list(table["rows"]["nothing"])
    lines = [
        "words of the true answer that stay the most likely, with the image hidden; (n): mean over "
        "n scenes, which have such words",
        f"{'':36}" + "".join(f"{name:>13}" for name in names),
    ]
    for span, row in table["rows"].items():
        cells = (mean_text(row[n]["mean"], ".1%", row[n]["count"], table["scenes"]) for n in names)
        lines.append(f"{span:36}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def looking_heads(vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back") -> dict[str, Any]:
    """Rank heads by how they look at verified facts, and knock out the first of them.

    Heads are ranked on the first half of the scenes and knocked out on the second.

    Parameters
    ----------
    vlm, scenes, seed
        A testbed model; how many and which held-out scenes.
    mode
        ``back`` or ``reflection`` (nothing is inserted).

    Returns
    -------
    dict
        ``hit`` [layer][head]: fraction of fact steps at which the most attended visual token is
        the object's own; ``on_object`` [layer][head]: fraction of attention mass on it, mean over
        fact steps; ``ranking``: heads (layer, head) by ``on_object``; ``facts``: number of fact
        steps. ``knockouts``: for each number of heads, facts right (mean over scenes, with 95%
        score intervals) with the image hidden, from the verification on, from the first heads of
        the ranking (``top``) and from as many others (``random``: mean over random choices, with
        the mean of each in ``draws``); ``untouched`` likewise.

    Raises
    ------
    InputError
        If the mode has no verification, or there are fewer than four scenes.
    """
    check_request(mode, scenes, 4)
    samples = [held_out_sample(seed, i, mode) for i in range(scenes)]
    half = scenes // 2
    table = rank(vlm, samples[:half])
    ranking: list[Head] = [tuple(pair) for pair in table["ranking"]]
    rng = np.random.default_rng(seed)
    tested = [s for s in samples[half:] if s.scene.objects]
    counts = [c for c in HEAD_COUNTS if 2 * c <= len(ranking)]
    # by (number of heads, choice): choice 0 is the top of the ranking, the others are random
    chosen: dict[tuple[int, int], list[Head]] = {(0, 0): []}
    for count in counts:
        chosen[count, 0] = ranking[:count]
        for choice in range(1, RANDOM_CHOICES + 1):
            others = rng.permutation(len(ranking) - count)[:count] + count
            chosen[count, choice] = [ranking[i] for i in others]
    when = At(TAGS[mode][0], times=1)
    knocked = [
        Knockout(when=when, heads=heads) if heads else Nothing() for heads in chosen.values()
    ]
    found: dict[tuple[int, int], list[float]] = {key: [] for key in chosen}
    for sample in progress(tested, description=f"knocking heads out, {mode}"):
        truth, rights = words_right(vlm, sample, knocked)
        facts = [token.states_fact for token in truth]
        for key, right in zip(chosen, rights, strict=True):
            found[key].append(float(right[facts].mean()))
    by_count: dict[int, dict[str, Any]] = {}
    for count in counts:
        shares = [found[count, choice] for choice in range(1, RANDOM_CHOICES + 1)]
        means = np.mean(shares, axis=0).tolist()
        by_count[count] = {
            "heads": [list(head) for head in chosen[count, 0]],
            "top": with_interval(found[count, 0], proportion=True),
            "random": {
                **with_interval(means, proportion=True),
                "draws": [float(np.mean(share)) for share in shares],
            },
        }
    table["knockouts"] = {
        "scenes": len(tested),
        "untouched": with_interval(found[0, 0], proportion=True),
        "by_count": by_count,
    }
    return table


def rank(vlm: VLM, samples: list[Sample]) -> dict[str, Any]:
    """Rank heads by their attention mass on the object's own visual token at verified facts."""
    passes = [forced_pass(vlm, s) for s in progress(samples, description="ranking heads")]
    masses = [m for p in passes for m, t in zip(p.on_object, p.truth, strict=True) if t.states_fact]
    if not masses:
        raise InputError(f"{len(samples)} scenes hold no object: give more scenes")
    on_object = np.mean(masses, axis=0)
    pointed = pointing(passes, "verification")
    order = np.argsort(-on_object, axis=None, kind="stable")
    ranking = [[int(i) for i in np.unravel_index(place, on_object.shape)] for place in order]
    return {
        "scenes": len(samples),
        "facts": len(masses),
        "hit": pointed["hit"],
        "on_object": on_object.round(4).tolist(),
        "chance": pointed["chance"],
        "ranking": ranking,
    }
