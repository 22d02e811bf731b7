"""What each head, each MLP and each visual token adds to a logit.

The residual stream after the last layer is a sum of what the embedding and every layer added, and
the logit is linear in it once the scale of the last norm is taken as given. So the logit is a sum,
too: direct logit attribution (Elhage et al. 2021, "A mathematical framework for transformer
circuits", https://transformer-circuits.pub/2021/framework; Wang et al. 2022, arXiv 2211.00593). A
head's output is in turn a sum over keys of weight times value, so its part splits by key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from attnlens.errors import InputError
from attnlens.lenses.head_outputs import head_weights
from attnlens.lenses.text_pass import Hook, Response, TextPass, check_tokens
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.response import token_texts
from attnlens.recording.tap import LayerAttention
from attnlens.segments import SEGMENTS

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""Largest difference between a logit and the sum of its parts, relative to the largest part."""
LAYER_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}
"""Largest difference between what attention adds in a layer and the sum of its heads, by length."""


@torch.no_grad()
def direct_logit_attribution(
    vlm: VLM,
    prompt: Prompt,
    response: Response,
    step: int,
    *,
    token: int | None = None,
    against: int | None = None,
) -> xr.Dataset:
    """Split the logit of a token at one step into what the model's parts add to it directly.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    response
        The response, as a trace or as token ids.
    step
        Step t predicts token t of the response.
    token
        Token id whose logit is split; that of the response when not given.
    against
        Another token id, to split the difference of both logits.

    Returns
    -------
    xarray.Dataset
        In units of the logit: ``by_head[layer, head]``; ``by_segment[layer, head, segment]``, which
        adds up to it, and within it ``by_visual[layer, head, visual]``, of each visual token;
        ``by_mlp[layer]``; ``embedding``, of the token fed in; ``bias``, of all biases. ``logit`` is
        what they add up to, as the model gives it. Coordinates ``visual_row`` and
        ``visual_column`` place the visual tokens of a single image; attributes name the tokens.

    Raises
    ------
    InputError
        If there is no such step or token, the last norm is none that scales each row by one number
        (as RMSNorm does), or the parts do not add up to the logit (a model whose layers add
        something else, or that caps its logits).
    """
    whole = TextPass(vlm, prompt, response)
    row = whole.row(step)
    parts = whole.parts
    token = whole.ids[step] if token is None else token
    check_tokens(whole.vocabulary, token=token)
    if against is not None:
        check_tokens(whole.vocabulary, against=against)
    seen = _Seen(whole, row)
    with whole.attention(seen.attention):
        logits = whole.run(seen.hooks, [row])[0, 0].double()
    direction = parts.unembed.weight[token].double()
    logit = logits[token]
    if against is not None:
        direction = direction - parts.unembed.weight[against].double()
        logit = logit - logits[against]
    # the last norm multiplies each feature by a weight and by one number for the row
    scale = _norm_scale(parts.norm, seen.final)
    direction = direction * scale
    heads, visual, by_segment, bias = seen.by_key(direction)
    mlp = torch.stack([added @ direction for added in seen.mlp])
    embedding = seen.embedding @ direction
    bias = bias + _unembed_bias(parts.unembed, token, against)
    total = heads.sum() + mlp.sum() + embedding + bias
    biggest = max(float(abs(part).max()) for part in (heads, mlp, embedding, logit))
    limit = TOLERANCE.get(parts.unembed.weight.dtype, 1e-3) * max(1.0, biggest)
    if abs(float(total - logit)) > limit:
        raise InputError(
            f"the parts add up to {float(total):.4f}, and the logit is {float(logit):.4f}: "
            f"{type(vlm.model).__name__} computes logits in a way that direct attribution does "
            "not know"
        )
    data = xr.Dataset(
        {
            "by_head": (("layer", "head"), heads.cpu().numpy()),
            "by_segment": (("layer", "head", "segment"), by_segment.cpu().numpy()),
            "by_visual": (("layer", "head", "visual"), visual.cpu().numpy()),
            "by_mlp": ("layer", mlp.cpu().numpy()),
            "embedding": ((), float(embedding)),
            "bias": ((), float(bias)),
            "logit": ((), float(logit)),
        },
        {
            "layer": range(parts.layer_count),
            "head": range(parts.head_count),
            "segment": list(SEGMENTS),
            **visual_places(prompt),
        },
        {
            "model": vlm.name,
            "step": int(step),
            "token": token_texts(vlm.tokenizer, [int(token)])[0],
            "against": "" if against is None else token_texts(vlm.tokenizer, [int(against)])[0],
        },
    )
    for variable in data.data_vars.values():
        variable.attrs = {"units": "logit"}
    return data


def visual_places(prompt: Prompt) -> dict[str, Any]:
    """Return row and column of each visual token of the prompt's image.

    They are -1 where there are several images, or several tiles of one.
    """
    count = int((prompt.segments == "visual").sum())
    row = column = np.full(count, -1)
    if len(prompt.images) == 1 and len(prompt.images[0].tiles) == 1:
        _, row, column = prompt.images[0].places()
    return {"visual_row": ("visual", row), "visual_column": ("visual", column)}


class _Seen:
    """What one row adds to the residual stream, layer by layer."""

    def __init__(self, whole: TextPass, row: int) -> None:
        self._whole, self._row = whole, row
        self.mlp: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.weights: dict[int, torch.Tensor] = {}
        self.final = self.embedding = torch.zeros(0)
        parts = whole.parts
        self.hooks: list[Hook] = [
            (parts.blocks[0].layer, "pre", self._see_embedding),
            (parts.norm, "pre", self._see_final),
        ]
        for block in parts.blocks:
            self.hooks.append((block.mlp, "post", self._see_mlp))
            self.hooks.append((block.values, "post", self._see_values))
            self.hooks.append((block.output, "post", self._see_output))

    def _see_embedding(self, _module: Any, args: tuple, options: dict) -> None:
        states = args[0] if args else options["hidden_states"]
        self.embedding = states[0, self._row].double()

    def _see_final(self, _module: Any, args: tuple, options: dict) -> None:
        states = args[0] if args else options["hidden_states"]
        self.final = states[0, self._row].double()

    def _see_mlp(self, _module: Any, _args: tuple, _options: dict, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        self.mlp.append(found[0, self._row].double())

    def _see_values(self, _module: Any, _args: tuple, _options: dict, output: Any) -> None:
        self.values.append(output[0])

    def _see_output(self, _module: Any, _args: tuple, _options: dict, output: Any) -> None:
        self.outputs.append(output[0, self._row].double())

    def attention(self, seen: LayerAttention) -> None:
        """Keep the row's weights: float64 [heads, keys]."""
        weights = head_weights(seen, torch.tensor([self._row]))
        self.weights[seen.layer] = weights[:, 0].double()

    def by_key(
        self, direction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Parts of heads, of visual tokens, of segments, and of the projections' biases."""
        parts, row = self._whole.parts, self._row
        segment = self._whole.segments
        of_segment = torch.tensor(np.array([segment == s for s in SEGMENTS], dtype=np.float64))
        of_segment = of_segment.to(direction.device)
        visual = torch.from_numpy(self._whole.visual_slots).to(direction.device)
        heads, by_visual, by_segment = [], [], []
        bias = direction.new_zeros(())
        for layer, block in enumerate(parts.blocks):
            weight = block.output.weight.double()  # width, heads x dimension
            dimension = weight.shape[1] // parts.head_count
            reading = (direction @ weight).reshape(parts.head_count, dimension)
            values = self.values[layer].double().reshape(self._whole.length, -1, dimension)
            repeats = parts.head_count // values.shape[1]
            values = values.repeat_interleave(repeats, dim=1)  # keys, heads, dimension
            self._check_heads(layer, values, weight, block.output.bias)
            of_key = torch.einsum("khd,hd->hk", values, reading) * self.weights[layer]
            of_key[:, row + 1 :] = 0.0
            heads.append(of_key.sum(-1))
            by_visual.append(of_key[:, visual])
            by_segment.append(of_key @ of_segment.T)
            if block.output.bias is not None:
                bias = bias + block.output.bias.double() @ direction
        return torch.stack(heads), torch.stack(by_visual), torch.stack(by_segment), bias

    def _check_heads(self, layer: int, values: torch.Tensor, weight: Any, bias: Any) -> None:
        """Refuse a layer whose attention adds something else than its heads do."""
        given = self.outputs[layer]
        heads = torch.einsum("hk,khd->hd", self.weights[layer], values).flatten()
        ours = weight @ heads + (0.0 if bias is None else bias.double())
        limit = LAYER_TOLERANCE.get(self._whole.parts.unembed.weight.dtype, 1e-3)
        error = float((ours - given).norm() / given.norm().clamp(min=1e-9))
        if error > limit:
            raise InputError(
                f"what attention adds in layer {layer} differs by {error:.1%} from what its heads "
                "give: its attention or its output does more than direct attribution knows (an "
                "adapter that is not merged, a gate)"
            )


def _norm_scale(norm: Any, states: torch.Tensor) -> torch.Tensor:
    """Return what the last norm multiplies each feature of a row by.

    Raises
    ------
    InputError
        If it does something else, too.
    """
    weight = norm.weight.double()
    normed = norm(states.to(norm.weight.dtype)[None])[0].double()
    weighted = states * weight
    scale = (normed @ weighted) / (weighted @ weighted)
    limit = 1e-4 if norm.weight.dtype == torch.float32 else 0.02  # others round each product
    if (normed - scale * weighted).abs().max() > limit * normed.abs().max():
        raise InputError(
            f"the last norm ({type(norm).__name__}) does more than scale a row by its weight: "
            "direct attribution needs RMSNorm"
        )
    return weight * scale


def _unembed_bias(unembed: Any, token: int, against: int | None) -> torch.Tensor:
    if unembed.bias is None:
        return torch.zeros((), dtype=torch.float64)
    found = unembed.bias[token].double()
    return found if against is None else found - unembed.bias[against].double()
