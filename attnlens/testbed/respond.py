"""Responses of a model to samples, many at a time, with the true or another picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.testbed.samples import HELD_OUT, Sample
from attnlens.testbed.scenes import random_scene

if TYPE_CHECKING:
    from PIL import Image

    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt

IMAGES = ("true", "blank", "other")
REFLECTION = "<REFLECTION>"


def picture(sample: Sample, image: str = "true") -> Image.Image:
    """Draw the picture that is shown for a sample.

    Parameters
    ----------
    sample
        The sample.
    image
        ``true``; ``blank``: an empty picture of the same size; ``other``: another scene of the
        same grid and the same number of objects, a function of the sample alone.

    Raises
    ------
    InputError
        If ``image`` is none of the three.
    """
    from PIL import Image

    scene = sample.scene
    if image not in IMAGES:
        raise InputError(f"unknown picture {image!r}: use one of {', '.join(IMAGES)}")
    if image == "blank":
        return Image.new("RGB", scene.size, scene.background)
    if image == "other":
        first = scene.objects[0].centre[0] if scene.objects else 0
        rng = np.random.default_rng((HELD_OUT, len(scene.objects), int(first * 1e6)))
        grid = (scene.rows, scene.columns)
        return random_scene(rng, objects=len(scene.objects), grid=grid).draw()
    return scene.draw()


def respond(
    vlm: VLM,
    samples: list[Sample],
    *,
    max_new_tokens: int = 500,
    image: str = "true",
    copy: bool = False,
) -> list[tuple[str, int]]:
    """Generate responses greedily as one batch.

    Parameters
    ----------
    vlm
        The model.
    samples
        What to ask.
    max_new_tokens
        Longest response.
    image
        What is shown; see ``picture``.
    copy
        Whether all visual tokens are inserted again before ``<REFLECTION>``: the response is
        generated up to the tag, and goes on from the prompt with the response so far, the image's
        tokens and the tag. Responses that never come to the tag stay as they are.

    Returns
    -------
    list of (str, int)
        Text without special tokens, and its length in tokens (inserted tokens not counted).
    """
    import torch

    pictures = [picture(sample, image) for sample in samples]
    prompts = [
        vlm.prompt(shown, sample.question.text, sample.mode)
        for shown, sample in zip(pictures, samples, strict=True)
    ]
    batch = vlm.batch(prompts)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if copy:
        options |= {"stop_strings": [REFLECTION], "tokenizer": vlm.tokenizer}
    with torch.no_grad():
        sequences = vlm.model.generate(**batch.inputs, **options)
    generated = [_until_end(vlm, row) for row in sequences[:, batch.segments.shape[1] :].tolist()]
    if copy:
        split = {i: _split_at_tag(vlm, ids) for i, ids in enumerate(generated)}
        heads = {i: head for i, head in split.items() if head is not None}
        rests = _go_on_with_copy(vlm, prompts, heads, max_new_tokens) if heads else {}
        for i, rest in rests.items():
            generated[i] = [*generated[i], *rest][:max_new_tokens]
    return [(vlm.tokenizer.decode(ids, skip_special_tokens=True), len(ids)) for ids in generated]


def _until_end(vlm: VLM, ids: list[int]) -> list[int]:
    for end in (vlm.tokenizer.eos_token_id, vlm.tokenizer.pad_token_id):
        ids = ids[: ids.index(end)] if end in ids else ids
    return ids


def _split_at_tag(vlm: VLM, ids: list[int]) -> tuple[list[int], list[int]] | None:
    """Part the tokens into those before the tag and the tag's; None where it is not at the end."""
    for count in range(1, len(REFLECTION) + 1):
        if vlm.tokenizer.decode(ids[-count:]).strip() == REFLECTION:
            return ids[:-count], ids[-count:]
    return None


def _go_on_with_copy(
    vlm: VLM,
    prompts: list[Prompt],
    heads: dict[int, tuple[list[int], list[int]]],
    max_new_tokens: int,
) -> dict[int, list[int]]:
    """Generate on from prompt, response, the image's tokens once more, and the tag.

    ``heads`` and the result are keyed by the place of the prompt.
    """
    import torch

    special = vlm.family.special_tokens(vlm.model.config)
    rows = []
    for i, (before, tag) in heads.items():
        asked = prompts[i].inputs
        visual = int((asked["input_ids"] == special.image).sum())
        more = [*before, special.start, *[special.image] * visual, special.end, *tag]
        rows.append(vlm.family.append(vlm.model.config, asked, more, images=asked))
    inputs = vlm.family.join(rows, vlm.tokenizer.pad_token_id)
    with torch.no_grad():
        sequences = vlm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    generated = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return {i: _until_end(vlm, ids) for i, ids in zip(heads, generated, strict=True)}
