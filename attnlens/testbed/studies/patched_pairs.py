"""Where patching finds the difference of two scenes, against where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.lenses.edges import looking_heads
from attnlens.lenses.patching import PromptPair, activation_patching, path_patching
from attnlens.measures.statistics import with_interval
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


def patched_pair(vlm: VLM, index: int, seed: int = 0, *, batch: int = 16) -> dict[str, Any]:
    """Patch one pair of held-out scenes that differ in the mark or the size of one object.

    Parameters
    ----------
    vlm, index, seed
        A testbed model, and which pair; marks and sizes in turn.
    batch
        How many patches run side by side.

    Returns
    -------
    dict
        ``residual_right``, ``path_right``: whether the visual token with the largest effect shows
        the object, by patching the residual stream (over all layers) and by path patching into the
        text (over all layers and heads); ``restored``, ``path_restored``: fraction of the logit
        difference that these restore; ``direct_restored``: the same of the best path into the row
        that states the difference. ``path_head``, ``knockout_head`` (``layer.head``): which head
        has the best path, and whose knock-out costs the facts most; ``rho``: Spearman's correlation
        over heads of that loss and attention to the image. ``attribute``.

    Raises
    ------
    InputError
        If the model is none of the testbed.
    """
    scenes = held_out_pair(seed, index, list(ATTRIBUTES)[index % 2])
    pair = stated_difference(vlm, scenes)
    patched = activation_patching(vlm, pair, batch=batch)
    whole = float(patched["clean"] - patched["corrupted"])
    on_image = np.flatnonzero(patched["segment"].values == "visual")
    residual = patched["residual"].values[:, on_image] / whole
    path = path_patching(vlm, pair, batch=batch)["path"].values / whole
    direct = path_patching(vlm, pair, rows="last", batch=batch)["path"].values / whole
    layer, head, place = np.unravel_index(path.argmax(), path.shape)
    ids = vlm.tokenizer(scenes.clean.answer, add_special_tokens=False)["input_ids"]
    truth = token_truth(scenes.clean, token_texts(vlm.tokenizer, ids))
    facts = [step for step, token in enumerate(truth) if token.states_fact]
    heads = looking_heads(vlm, pair.clean, pair.response, facts)
    change = heads["change"].values
    return {
        "attribute": scenes.attribute,
        "residual_right": int(residual.max(0).argmax()) == scenes.visual_token,
        "path_right": int(place) == scenes.visual_token,
        "restored": float(residual.max()),
        "path_restored": float(path.max()),
        "direct_restored": float(direct.max()),
        "path_head": f"{layer}.{head}",
        "knockout_head": "{}.{}".format(*np.unravel_index(change.argmin(), change.shape)),
        "rho": float(heads.attrs["rho"]),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up pairs, as ``patched_pair`` gives them.

    Returns
    -------
    dict
        Means with 95% intervals over pairs of what are numbers, and how often each head was named.
    """
    right, parts = ("residual_right", "path_right"), ("restored", "path_restored")
    numbers = {
        name: with_interval([float(row[name]) for row in rows], proportion=name in right)
        for name in (*right, *parts, "direct_restored", "rho")
    }
    named = {
        f"{name}s": dict(Counter(row[name] for row in rows).most_common())
        for name in ("path_head", "knockout_head")
    }
    return {"pairs": len(rows), **numbers, **named}
