"""One forward pass over a true answer, in which visual keys can be hidden from single steps.

A recorded run, or an answer forced token by token, gives attention masses only, and a knock-out
there begins and ends at a trigger. Here the true answer goes through the model in one pass with
eager attention, which returns every weight and takes a separate mask for each row. Masses agree
with those of a recorded run to 1e-5, as a test checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.models.families import parts_of
from attnlens.recording.response import token_texts
from attnlens.testbed.model.architecture import embed
from attnlens.testbed.studies.scoring import prompt_of
from attnlens.testbed.world.samples import Sample, TokenTruth, token_truth
from attnlens.testbed.world.scenes import SIZES

if TYPE_CHECKING:
    from attnlens.models.load import VLM

HiddenTokens = Callable[[TokenTruth, int], bool | np.ndarray]
"""(truth of an answer's token, number of visual tokens) -> which visual tokens are hidden from the
step that predicts the token: bool [visual tokens], or one bool for all."""


def states_size(token: TokenTruth) -> bool:
    """Whether a token states a size inside a verification."""
    return token.states_fact and token.text.strip() in SIZES


def _of_object(token: TokenTruth, visual_tokens: int) -> np.ndarray:
    return np.isin(np.arange(visual_tokens), token.visual_tokens)


HIDDEN_FROM: dict[str, HiddenTokens] = {
    "nothing": lambda token, _: False,
    "at the steps that state a fact": lambda token, _: token.states_fact,
    "at the steps that state a size": lambda token, _: states_size(token),
    # a mark often comes right after the size
    "at the steps that state a mark": lambda t, _: t.states_fact and not states_size(t),
    "its object's visual token, at those steps": lambda t, n: t.states_fact & _of_object(t, n),
    "all other visual tokens, at those steps": lambda t, n: t.states_fact & ~_of_object(t, n),
    "throughout the verification": lambda token, _: token.section == "verification",
    "everywhere in the answer but there": lambda token, _: token.section != "verification",
}
"""What is hidden where, to find out where a verified fact is looked up."""


@dataclass(frozen=True)
class ForcedPass:
    """Result of one pass over prompt and true answer.

    Attributes
    ----------
    truth
        Truth of each answer token. Step t predicts token t.
    right
        bool [step]: whether the most likely token is the true one.
    mass
        float32 [step, layer, head]: fraction of attention mass on the visual tokens.
    peak
        int [step, layer, head]: the visual token with the largest weight.
    on_object
        float32 [step, layer, head]: fraction of attention mass on the visual tokens of the object
        that the step's token is about; 0 if there is none.
    visual_tokens
        Number of visual tokens of the image.
    """

    truth: list[TokenTruth]
    right: np.ndarray
    mass: np.ndarray
    peak: np.ndarray
    on_object: np.ndarray
    visual_tokens: int


def forced_pass(
    vlm: VLM, sample: Sample, *, image: str = "true", hide: HiddenTokens | None = None
) -> ForcedPass:
    """Feed the true answer, and return what each step predicts and where it looks.

    Parameters
    ----------
    vlm, sample
        A testbed model, and what is asked with its true answer.
    image
        What is shown; see ``picture``.
    hide
        Which visual tokens are hidden at which steps, in all layers and heads.

    Raises
    ------
    InputError
        If the processor resizes the picture, so that the scene's boxes and visual tokens are wrong.
    """
    import torch

    inputs = prompt_of(vlm, sample, image).inputs
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
    rows = slice(prompt_length - 1, length - 1)  # those that predict the answer
    seen = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    if hide is not None:
        hidden = [np.broadcast_to(hide(token, visual_tokens), visual_tokens) for token in truth]
        seen[rows, is_visual] &= ~torch.from_numpy(np.array(hidden)).to(device)
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
    right = (logits[0, rows].argmax(-1) == answer[0]).cpu().numpy()
    weights = torch.stack([a[0][:, rows][:, :, is_visual] for a in out.attentions]).float()
    mass = weights.sum(-1).permute(2, 0, 1).cpu().numpy()
    peak = weights.argmax(-1).permute(2, 0, 1).cpu().numpy()
    own = torch.zeros((len(truth), visual_tokens), device=device)
    for step, token in enumerate(truth):
        own[step, list(token.visual_tokens)] = 1.0
    on_object = (weights * own).sum(-1).permute(2, 0, 1).cpu().numpy()
    return ForcedPass(truth, right, mass, peak, on_object, visual_tokens)


@contextmanager
def _eager(model: Any) -> Iterator[Any]:
    """Use eager attention in the text layers within the block."""
    text_model = parts_of(model).text
    before = text_model.config._attn_implementation
    text_model.set_attn_implementation("eager")
    try:
        yield text_model
    finally:
        text_model.set_attn_implementation(before)
