"""What the residual stream says after each layer, read by the last norm and the unembedding.

The logit lens (nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru); on visual
tokens, as in Neo et al. 2024 (arXiv 2410.07149).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from attnlens.errors import InputError
from attnlens.lenses.direct_logit_attribution import visual_places
from attnlens.lenses.text_pass import CHUNK_ELEMENTS, Hook, Response, TextPass, check_tokens
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.response import token_texts

WHERE = ("visual", "response")


@torch.no_grad()
def logit_lens(
    vlm: VLM,
    prompt: Prompt,
    response: Response,
    *,
    where: str = "response",
    tokens: Sequence[int] = (),
    top: int = 5,
) -> xr.Dataset:
    """Read the residual stream after each layer as a distribution over tokens.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    response
        The response, as a trace or as token ids.
    where
        ``"response"``: the rows that predict the response; ``"visual"``: the visual tokens.
    tokens
        Token ids whose log-probabilities are wanted everywhere.
    top
        How many of the most likely tokens are kept.

    Returns
    -------
    xarray.Dataset
        ``top_token[layer, position, rank]`` (texts) and ``top_id``; ``top_log_probability`` and
        ``entropy[layer, position]`` (nats); ``log_probability[layer, position, token]`` (nats) of
        ``tokens``; with ``where="response"`` also ``of_response[layer, position]``, that of the
        response's own token, and the coordinate ``response_token``. Layer l is the stream after
        layer l; the last one gives the model's own prediction. Positions are steps or visual
        tokens, these with ``visual_row`` and ``visual_column``.

    Raises
    ------
    InputError
        If ``where`` is unknown, ``top`` is less than 1, or a token id is not there.
    """
    if where not in WHERE:
        raise InputError(f"where={where!r}: use one of {', '.join(WHERE)}")
    if not isinstance(top, int) or top < 1:
        raise InputError(f"top={top!r}: give at least 1")
    whole = TextPass(vlm, prompt, response)
    parts, vocabulary = whole.parts, whole.vocabulary
    check_tokens(vocabulary, tokens=list(tokens))
    if where == "visual":
        whole.check_image()
    on_response = where == "response"
    steps = range(whole.prompt_length - 1, whole.length)
    rows = list(steps) if on_response else whole.visual_slots.tolist()
    own = torch.tensor(whole.ids) if on_response else None
    streams: list[torch.Tensor] = []

    def see(_module: Any, _args: tuple, _options: dict, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        streams.append(states[0, rows])

    hooks: list[Hook] = [(block.layer, "post", see) for block in parts.blocks]
    whole.run(hooks, rows[:1])
    found = [_read(parts, stream, own, tokens, min(top, vocabulary)) for stream in streams]
    read = {name: np.stack([one[name] for one in found]) for name in found[0]}
    texts = np.array(token_texts_each(vlm.tokenizer, read["ids"].ravel()), dtype=str)
    by_rank = ("layer", "position", "rank")
    coordinates: dict[str, Any] = {"layer": range(parts.layer_count), "position": range(len(rows))}
    variables = {
        "top_id": (by_rank, read["ids"]),
        "top_token": (by_rank, texts.reshape(read["ids"].shape)),
        "top_log_probability": (by_rank, read["values"]),
        "entropy": (("layer", "position"), read["entropy"]),
        "log_probability": (("layer", "position", "token"), read["chosen"]),
    }
    coordinates["token"] = list(map(int, tokens))
    if on_response:
        variables["of_response"] = (("layer", "position"), read["own"])
        words = token_texts(vlm.tokenizer, whole.ids)
        coordinates["response_token"] = ("position", np.array(words, dtype=str))
    else:
        coordinates |= {n: ("position", v) for n, (_, v) in visual_places(prompt).items()}
    attributes = {"model": vlm.name, "where": where}
    return xr.Dataset(variables, coordinates, attributes)


def token_texts_each(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """Text of each token by itself: they do not follow each other."""
    known = {int(i): token_texts(tokenizer, [int(i)])[0] for i in np.unique(ids)}
    return [known[int(i)] for i in ids]


def _read(
    parts: Any, stream: torch.Tensor, own: torch.Tensor | None, tokens: Sequence[int], top: int
) -> dict[str, np.ndarray]:
    """Read the rows of one layer, a few at a time."""
    at_once = max(1, CHUNK_ELEMENTS // parts.unembed.weight.shape[0])
    pieces: dict[str, list[torch.Tensor]] = {
        "ids": [],
        "values": [],
        "entropy": [],
        "chosen": [],
        "own": [],
    }
    for start in range(0, len(stream), at_once):
        rows = stream[start : start + at_once]
        logs = parts.unembed(parts.norm(rows)).float().log_softmax(-1)
        best = logs.topk(top, dim=-1)
        pieces["ids"].append(best.indices)
        pieces["values"].append(best.values)
        pieces["entropy"].append(torch.special.entr(logs.exp()).sum(-1))
        pieces["chosen"].append(logs[:, list(tokens)])
        if own is not None:
            here = own[start : start + at_once, None].to(logs.device)
            pieces["own"].append(logs.gather(1, here)[:, 0])
    return {name: torch.cat(found).cpu().numpy() for name, found in pieces.items() if found}
