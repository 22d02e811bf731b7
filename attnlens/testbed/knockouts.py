"""What stays right of a true answer when the image is hidden from one part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.interventions import At, AtStep, Intervention, Knockout
from attnlens.interventions.base import Nothing
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.measures.statistics import with_interval
from attnlens.progress import progress
from attnlens.recording.response import token_texts
from attnlens.testbed.hiding import states_fact
from attnlens.testbed.looking_again import REASONING, TAGS, check_request
from attnlens.testbed.samples import Sample, held_out_sample
from attnlens.testbed.truth import TokenTruth, token_truth

if TYPE_CHECKING:
    from attnlens.models.load import VLM

GROUPS = {
    "listed": "words of the description that only the image tells",
    "reasoned": "words of the reasoning, told",
    "facts": "facts of the verification, which only the image tells",
    "names": "other words of the verification, told",
    "restated": "words after the verification, told",
}
"""Groups of an answer's words, by name."""


def spans(mode: str) -> dict[str, Intervention]:
    """Return where the image is hidden from, by name."""
    opening, closing = TAGS[mode]
    return {
        "nothing": Nothing(),
        "in summary and description": Knockout(when=AtStep(1), until=REASONING),
        "in the reasoning": Knockout(when=REASONING, until=At(opening, times=1)),
        "in the verification": Knockout(when=At(opening), until=At(closing)),
        "from the verification on": Knockout(when=At(opening, times=1)),
    }


def knock_outs(vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back") -> dict[str, Any]:
    """Feed true answers with the image hidden from a part of them, and see which words stay right.

    Every answer is fed as it is, so that the words compared are the same whatever is hidden; a
    word is right where it is the most likely one.

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
        ``rows``: for each of ``spans``, the fraction of each of ``GROUPS`` that is right (mean over
        scenes that have such words, with 95% score intervals over scenes).

    Raises
    ------
    InputError
        If the mode has no verification, or fewer than two scenes are asked for.
    """
    check_request(mode, scenes, 2)
    found: dict[str, dict[str, list[float]]] = {
        span: {group: [] for group in GROUPS} for span in spans(mode)
    }
    for index in progress(range(scenes), description=f"hiding the image, {mode}"):
        sample = held_out_sample(seed, index, mode)
        for span, shares in _right(vlm, sample).items():
            for group, share in shares.items():
                found[span][group].append(share)
    rows = {
        span: {group: with_interval(values, proportion=True) for group, values in groups.items()}
        for span, groups in found.items()
    }
    return {"scenes": scenes, "rows": rows}


def _right(vlm: VLM, sample: Sample) -> dict[str, dict[str, float]]:
    named = spans(sample.mode)
    truth, rights = words_right(vlm, sample, list(named.values()))
    groups = np.array([_group(token) for token in truth])
    return {
        span: {g: float(right[groups == g].mean()) for g in GROUPS if (groups == g).any()}
        for span, right in zip(named, rights, strict=True)
    }


def words_right(
    vlm: VLM, sample: Sample, interventions: Sequence[Intervention]
) -> tuple[list[TokenTruth], list[np.ndarray]]:
    """Feed a true answer under each intervention, and see which words are the most likely.

    Returns
    -------
    list of TokenTruth, and list of bool [tokens]
        Truth of the answer's tokens; for each intervention, which of them are right.
    """
    prompt = vlm.prompt(sample.scene.draw(), sample.question.text, sample.mode)
    ids = vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    truth = token_truth(sample, token_texts(vlm.tokenizer, ids))
    rights = []
    for chosen in interventions:
        with ForcedSession(vlm, prompt, chosen) as session:
            rights.append(session.force(ids).argmax(-1).numpy() == np.array(ids))
    return truth, rights


def _group(token: TokenTruth) -> str:
    if states_fact(token):
        return "facts"
    if token.section == "description":
        return "listed" if token.must_look else ""
    told = {"reasoning": "reasoned", "verification": "names", "conclusion": "restated"}
    return "" if token.must_look else told.get(token.section, "")
