"""One forward pass over a true answer, with its attention, and with visual keys hidden at will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.recording.response import token_texts
from attnlens.testbed.architecture import embed
from attnlens.testbed.respond import picture
from attnlens.testbed.samples import Sample
from attnlens.testbed.truth import TokenTruth, token_truth

if TYPE_CHECKING:
    from attnlens.models.load import VLM

Hide = Callable[["list[TokenTruth]", int, int], np.ndarray]
"""(truth of the answer's tokens, prompt length, visual tokens) -> bool [rows, visual tokens]: True
where the row of a query may not see a visual token. Rows are those of the whole sequence."""


@dataclass(frozen=True)
class Forced:
    """What one pass over prompt and true answer shows.

    Attributes
    ----------
    truth
        Truth of each answer token; step t predicts token t.
    right
        bool [step]: whether the most likely token is the true one.
    mass
        float32 [step, layer, head]: fraction of attention mass on the visual tokens.
    peak
        int [step, layer, head]: the visual token with the largest weight.
    on_object
        float32 [step, layer, head]: fraction of attention mass on the visual tokens of the object
        that the step's token speaks of; 0 where it speaks of none.
    visual_tokens
        How many visual tokens the image has.
    """

    truth: list[TokenTruth]
    right: np.ndarray
    mass: np.ndarray
    peak: np.ndarray
    on_object: np.ndarray
    visual_tokens: int


def forced_pass(
    vlm: VLM, sample: Sample, *, image: str = "true", hide: Hide | None = None
) -> Forced:
    """Feed the true answer and look at what each step would have said, and where it looked.

    Eager attention, whose matrices transformers hands out, in place of a recorded generation: the
    two agree to 1e-5 (that is tested), and this way keys can be hidden from some rows only.

    Parameters
    ----------
    vlm
        A testbed model.
    sample
        What is asked, with its true answer.
    image
        What is shown; see ``respond.picture``.
    hide
        Which visual tokens are hidden from which rows, in all layers and heads.

    Raises
    ------
    InputError
        If the picture shown is resized by the processor, so that boxes and visual tokens do not
        fit the scene.
    """
    import torch

    prompt = vlm.prompt(picture(sample, image), sample.question.text, sample.mode)
    inputs = prompt.inputs
    answer_ids = vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    truth = token_truth(sample, token_texts(vlm.tokenizer, answer_ids))
    device = inputs["input_ids"].device
    answer = torch.tensor([answer_ids], device=device)
    whole = vlm.family.append(vlm.model.config, inputs, answer_ids)
    ids = whole["input_ids"]
    is_visual = ids[0] == vlm.model.config.image_token_id
    visual_tokens = int(is_visual.sum())
    if visual_tokens != sample.scene.rows * sample.scene.columns:
        raise InputError(
            f"a scene of {sample.scene.rows} x {sample.scene.columns} cells became "
            f"{visual_tokens} visual tokens: use the testbed's own processor and limits of pixels"
        )
    prompt_length, length = inputs["input_ids"].shape[1], ids.shape[1]
    seen = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    if hide is not None:
        hidden = torch.from_numpy(hide(truth, prompt_length, visual_tokens)).to(device)
        seen[:, is_visual] &= ~hidden
    mask = torch.zeros((1, 1, length, length), dtype=vlm.model.dtype, device=device)
    mask.masked_fill_(~seen, torch.finfo(vlm.model.dtype).min)
    with torch.no_grad(), _eager(vlm.model) as text_model:
        out = text_model(
            inputs_embeds=embed(vlm.model, ids, whole),
            attention_mask={"full_attention": mask},
            position_ids=vlm.family.rotary_positions(vlm.model, whole),
            output_attentions=True,
            use_cache=False,
        )
        logits = vlm.model.lm_head(out.last_hidden_state)
    rows = slice(prompt_length - 1, length - 1)
    right = (logits[0, rows].argmax(-1) == answer[0]).cpu().numpy()
    weights = torch.stack([a[0][:, rows][:, :, is_visual] for a in out.attentions]).float()
    mass = weights.sum(-1).permute(2, 0, 1).cpu().numpy()
    peak = weights.argmax(-1).permute(2, 0, 1).cpu().numpy()
    own = torch.zeros((len(truth), visual_tokens), device=device)
    for step, token in enumerate(truth):
        own[step, list(token.visual_tokens)] = 1.0
    on_object = (weights * own).sum(-1).permute(2, 0, 1).cpu().numpy()
    return Forced(truth, right, mass, peak, on_object, visual_tokens)


@contextmanager
def _eager(model: Any) -> Iterator[Any]:
    """Give the text layers eager attention for the time of a block."""
    text_model = model.model.language_model
    before = text_model.config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield text_model
    finally:
        model.set_attn_implementation({"text_config": before})
