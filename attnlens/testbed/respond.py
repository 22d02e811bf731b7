"""Responses of a model to samples, many at a time, with the true or another picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.testbed.samples import HELD_OUT, Sample
from attnlens.testbed.scenes import random_scene

if TYPE_CHECKING:
    from PIL import Image

    from attnlens.vlm.load import VLM

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
        stopped = [i for i, ids in enumerate(generated) if _tag_length(vlm, ids)]
        inputs = [prompts[i].inputs for i in stopped]
        heads = [generated[i] for i in stopped]
        rests = _go_on_with_copy(vlm, inputs, heads, max_new_tokens) if stopped else []
        for i, rest in zip(stopped, rests, strict=True):
            generated[i] = [*generated[i], *rest][:max_new_tokens]
    return [(vlm.tokenizer.decode(ids, skip_special_tokens=True), len(ids)) for ids in generated]


def _until_end(vlm: VLM, ids: list[int]) -> list[int]:
    for end in (vlm.tokenizer.eos_token_id, vlm.tokenizer.pad_token_id):
        ids = ids[: ids.index(end)] if end in ids else ids
    return ids


def _tag_length(vlm: VLM, ids: list[int]) -> int:
    """How many tokens spell the tag at the end; 0 where it does not stand there."""
    for count in range(1, len(REFLECTION) + 1):
        if vlm.tokenizer.decode(ids[-count:]).strip() == REFLECTION:
            return count
    return 0


def _go_on_with_copy(
    vlm: VLM, inputs: list[Any], heads: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Generate on from prompt, response, the image's tokens once more, and the tag."""
    import torch

    start, image_id, end = vlm.tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    )
    rows = []
    for prompt, ids in zip(inputs, heads, strict=True):
        asked = prompt["input_ids"][0].tolist()
        cut = len(ids) - _tag_length(vlm, ids)
        inserted = [start, *[image_id] * asked.count(image_id), end]
        rows.append([*asked, *ids[:cut], *inserted, *ids[cut:]])
    length = max(map(len, rows))
    pad = vlm.tokenizer.pad_token_id
    input_ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    device = inputs[0]["input_ids"].device
    ids_on_device = input_ids.to(device)
    pixels = [torch.cat([p["pixel_values"]] * 2) for p in inputs]
    grids = [torch.cat([p["image_grid_thw"]] * 2) for p in inputs]
    with torch.no_grad():
        sequences = vlm.model.generate(
            input_ids=ids_on_device,
            attention_mask=(ids_on_device != pad).long(),
            mm_token_type_ids=(ids_on_device == image_id).int(),
            pixel_values=torch.cat(pixels),
            image_grid_thw=torch.cat(grids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    return [_until_end(vlm, row) for row in sequences[:, length:].tolist()]
