"""Where patching finds the difference of two scenes, against where it is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.lenses.edges import looking_heads
from attnlens.lenses.patching import PromptPair, activation_patching, path_patching
from attnlens.measures.statistics import with_interval
from attnlens.progress import progress
from attnlens.recording.response import token_texts
from attnlens.testbed.studies.scoring import prompt_of
from attnlens.testbed.world.pairs import ATTRIBUTES, ScenePair, held_out_pair
from attnlens.testbed.world.samples import token_truth

if TYPE_CHECKING:
    from attnlens.models.load import VLM


def stated_difference(vlm: VLM, scenes: ScenePair) -> PromptPair:
    """Return what to patch: both prompts, and the true answer up to where it states the difference.

    Parameters
    ----------
    vlm, scenes
        A testbed model, and two scenes.
    """
    clean, corrupted = (
        vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        for sample in (scenes.clean, scenes.corrupted)
    )
    step = scenes.step(token_texts(vlm.tokenizer, clean))
    return PromptPair(
        prompt_of(vlm, scenes.clean),
        prompt_of(vlm, scenes.corrupted),
        clean,
        step,
        clean[step],
        corrupted[step],
    )


def patched_pairs(vlm: VLM, count: int, seed: int = 0, *, batch: int = 64) -> dict[str, Any]:
    """Patch pairs of held-out scenes that differ in the mark or the size of one object.

    Parameters
    ----------
    vlm, count, seed
        A testbed model; how many pairs (marks and sizes in turn) and which.
    batch
        How many patches run side by side.

    Returns
    -------
    dict
        ``residual_right``, ``path_right``: in what fraction of the pairs the visual token with the
        largest effect shows the object, by patching the residual stream (over all layers) and by
        path patching into the text (over all layers and heads); ``restored``, ``path_restored``:
        fraction of the logit difference that these restore; ``direct_restored``: the same of the
        best path into the row that states the difference. Means with 95% intervals over pairs.
        ``path_heads``, ``knockout_heads``: how often which head (``layer.head``) has the best path,
        and how often its knock-out costs the facts most; ``rho``: Spearman's correlation over heads
        of that loss and attention to the image. ``pairs``.

    Raises
    ------
    InputError
        If the model is none of the testbed.
    """
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "residual_right",
            "path_right",
            "restored",
            "path_restored",
            "direct_restored",
            "rho",
        )
    }
    path_heads: Counter[str] = Counter()
    knockout_heads: Counter[str] = Counter()
    for index in progress(range(count), description="patching pairs"):
        scenes = held_out_pair(seed, index, list(ATTRIBUTES)[index % 2])
        pair = stated_difference(vlm, scenes)
        patched = activation_patching(vlm, pair, batch=batch)
        whole = float(patched["clean"] - patched["corrupted"])
        on_image = np.flatnonzero(patched["segment"].values == "visual")
        residual = patched["residual"].values[:, on_image] / whole
        path = path_patching(vlm, pair, batch=batch)["path"].values / whole
        direct = path_patching(vlm, pair, rows="last", batch=batch)["path"].values / whole
        layer, head, place = np.unravel_index(path.argmax(), path.shape)
        found["residual_right"].append(int(residual.max(0).argmax()) == scenes.visual_token)
        found["path_right"].append(int(place) == scenes.visual_token)
        found["restored"].append(float(residual.max()))
        found["path_restored"].append(float(path.max()))
        found["direct_restored"].append(float(direct.max()))
        path_heads[f"{layer}.{head}"] += 1
        truth = token_truth(scenes.clean, token_texts(vlm.tokenizer, pair.response))
        facts = [step for step, token in enumerate(truth) if token.states_fact]
        heads = looking_heads(vlm, pair.clean, pair.response, facts)
        change = heads["change"].values
        layer, head = np.unravel_index(change.argmin(), change.shape)
        knockout_heads[f"{layer}.{head}"] += 1
        found["rho"].append(heads.attrs["rho"])
    right = ("residual_right", "path_right")
    return {
        **{
            name: with_interval(list(map(float, values)), proportion=name in right)
            for name, values in found.items()
        },
        "path_heads": dict(path_heads),
        "knockout_heads": dict(knockout_heads),
        "pairs": count,
    }
