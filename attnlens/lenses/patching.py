"""Activation patching between two images: which activations carry what the images differ in.

The model reads the second image ("corrupted") while single activations are taken from its pass over
the first ("clean"); what this does to the difference of two logits says what they carry: activation
patching, or causal tracing (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262;
Zhang & Nanda 2023, arXiv 2309.16042). In path patching (Wang et al. 2022, arXiv 2211.00593;
Goldowsky-Dill et al. 2023, arXiv 2304.05969) only what flows along one path is replaced: here from
one visual token, through one head, to the row that answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from attnlens.errors import InputError
from attnlens.lenses.direct_logit_attribution import visual_places
from attnlens.lenses.head_outputs import change_by_key, check_output
from attnlens.lenses.text_pass import Hook, Response, TextPass, check_tokens, response_ids
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.progress import progress
from attnlens.recording.record import choose_layers
from attnlens.recording.response import token_texts
from attnlens.recording.tap import LayerAttention

HEAD_ROWS = ("visual", "text", "last")
"""Rows whose head outputs are patched together: the visual tokens; the text after the image; the
last row, which answers."""


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in the image, and one response that both share up to a step.

    Attributes
    ----------
    clean, corrupted
        The prompts: token for token of one length, with images of one grid.
    response
        Token ids, or the trace of the clean prompt; the step's own and later ones are not fed.
    step
        The step whose prediction is compared.
    clean_token, corrupted_token
        Ids of what is right there for each image.
    """

    clean: Prompt
    corrupted: Prompt
    response: Response
    step: int
    clean_token: int
    corrupted_token: int

    def passes(self, vlm: VLM) -> tuple[TextPass, TextPass]:
        """Run both prompts.

        Raises
        ------
        InputError
            If the prompts differ in more than the image's content or have none, the two tokens are
            the same, a token or the step is not there, or a trace is that of another prompt or was
            made under an intervention.
        """
        one, other = self.clean, self.corrupted
        if not np.array_equal(one.segments, other.segments) or one.grids != other.grids:
            raise InputError(
                f"prompts of {len(one.segments)} keys, grids {list(one.grids)}, and "
                f"{len(other.segments)} keys, grids {list(other.grids)}: give two that differ in "
                "the content of the image alone"
            )
        if [i.frames for i in one.images] != [i.frames for i in other.images]:
            raise InputError("the prompts show other frames, or at other times, of their videos")
        if not torch.equal(one.inputs["input_ids"], other.inputs["input_ids"]):
            raise InputError("the prompts differ in their text: give two that differ in the image")
        if self.clean_token == self.corrupted_token:
            raise InputError(
                f"clean_token and corrupted_token are both {self.clean_token}: their logits "
                "have no difference"
            )
        vocabulary = int(parts_of(vlm.model).unembed.weight.shape[0])
        ids = response_ids(self.response, one, vocabulary)
        check_tokens(vocabulary, clean_token=self.clean_token, corrupted_token=self.corrupted_token)
        if not isinstance(self.step, int | np.integer) or not 0 <= self.step < len(ids):
            raise InputError(
                f"there is no step {self.step!r}: the response has steps 0 to {len(ids) - 1}"
            )
        fed = ids[: self.step + 1]
        passes = TextPass(vlm, one, fed), TextPass(vlm, other, fed)
        passes[0].check_image()
        return passes

    def difference(self, logits: torch.Tensor) -> torch.Tensor:
        """Logit of the clean token minus that of the corrupted one."""
        return (logits[..., self.clean_token] - logits[..., self.corrupted_token]).double()


@torch.no_grad()
def activation_patching(
    vlm: VLM, pair: PromptPair, *, layers: Iterable[int] | None = None, batch: int = 32
) -> xr.Dataset:
    """Patch the residual stream, by layer and position, and head outputs, by layer and head.

    Parameters
    ----------
    vlm
        The model.
    pair
        Two prompts; see ``PromptPair``.
    layers
        Indices of the layers that are patched; all when not given.
    batch
        How many patches run side by side; memory grows with it.

    Returns
    -------
    xarray.Dataset
        ``residual[layer, position]``: change of the logit difference when what enters layer l at a
        position comes from the clean pass, for every position from the first visual token on;
        ``by_head[layer, head, rows]``: the same for the output of a head, at all rows of
        ``HEAD_ROWS`` together. ``clean`` and ``corrupted`` are the logit differences of the two
        passes, so a change of ``clean - corrupted`` restores all of it. In units of the logit.
        Coordinates: ``segment`` and ``token`` of each position, ``visual_row`` and
        ``visual_column`` (-1 for text).

    Raises
    ------
    InputError
        As ``PromptPair.passes``, or if a layer is not there or ``batch`` is less than 1.

    Notes
    -----
    Memory: the residual stream that enters each layer, twice; the head outputs of the chosen
    layers; and ``batch`` passes side by side, with logits of one row each.
    """
    _check_batch(batch)
    clean, corrupted = pair.passes(vlm)
    row = corrupted.row(pair.step)
    base = pair.difference(corrupted.run(rows=[row])[0, 0])
    aim = pair.difference(clean.run(rows=[row])[0, 0])
    first = int(clean.visual_slots[0])
    positions = range(first, corrupted.length)
    heads = clean.parts.head_count
    chosen = choose_layers(layers, clean.parts.layer_count)
    before = _outputs_of(clean, chosen)
    residual = np.zeros((len(chosen), len(positions)))
    by_head = np.zeros((len(chosen), heads, len(HEAD_ROWS)))
    groups = _head_rows(corrupted, row)
    patches = _Patches(corrupted, pair, row, batch)
    for place, layer in enumerate(progress(chosen, description="patching")):
        sites = [[p] for p in positions]
        block = corrupted.parts.blocks[layer]
        residual[place] = patches.change(layer, block.layer, clean.entering(layer), sites)
        outputs = before[layer]
        width = outputs.shape[-1] // heads
        sites = [rows for rows in groups.values() for _ in range(heads)]
        columns = [slice(h * width, (h + 1) * width) for _ in groups for h in range(heads)]
        found = patches.change(layer, block.output, outputs, sites, columns)
        by_head[place] = found.reshape(len(groups), heads).T
    places = visual_places(pair.clean)
    on_visual = np.isin(np.array(positions), clean.visual_slots)
    coordinates: dict[str, Any] = {
        "layer": chosen,
        "position": np.array(positions),
        "head": range(heads),
        "rows": list(HEAD_ROWS),
        "segment": ("position", corrupted.segments[first:]),
        "token": ("position", np.array(_texts(vlm, corrupted)[first:], dtype=str)),
    }
    for name, (_, values) in places.items():
        spread = np.full(len(positions), -1)
        spread[on_visual] = values
        coordinates[name] = ("position", spread)
    return xr.Dataset(
        {
            "residual": (("layer", "position"), residual, {"units": "logit"}),
            "by_head": (("layer", "head", "rows"), by_head, {"units": "logit"}),
            "clean": ((), float(aim)),
            "corrupted": ((), float(base)),
        },
        coordinates,
        _attributes(vlm, pair),
    )


@torch.no_grad()
def path_patching(
    vlm: VLM,
    pair: PromptPair,
    *,
    rows: str = "text",
    layers: Iterable[int] | None = None,
    batch: int = 32,
) -> xr.Dataset:
    """Patch what one visual token gives one head for some rows, and for no others.

    The key and the value of the token come from the clean pass, and only these rows see them;
    everything after the layer follows.

    Parameters
    ----------
    vlm, pair
        As in ``activation_patching``.
    rows
        ``"last"``: the row that answers, so that what is measured is the path from the token
        through the head to the answer; ``"text"``: all rows after the image, so that paths by way
        of earlier words count, too.
    layers, batch
        As in ``activation_patching``.

    Returns
    -------
    xarray.Dataset
        ``path[layer, head, visual]``: change of the logit difference, in units of the logit;
        ``clean`` and ``corrupted`` as in ``activation_patching``. Coordinates ``visual_row`` and
        ``visual_column``.

    Raises
    ------
    InputError
        If ``rows`` is unknown, the attention of a layer is no softmax mean, or as
        ``activation_patching``.

    Notes
    -----
    Memory: queries, keys, values and head outputs of the chosen layers, twice; and what
    ``activation_patching`` says.
    """
    if rows not in ("last", "text"):
        raise InputError(f"rows={rows!r}: use last or text")
    _check_batch(batch)
    clean, corrupted = pair.passes(vlm)
    row = corrupted.row(pair.step)
    base = pair.difference(corrupted.run(rows=[row])[0, 0])
    aim = pair.difference(clean.run(rows=[row])[0, 0])
    heads, visual = clean.parts.head_count, clean.visual_slots.tolist()
    chosen = choose_layers(layers, clean.parts.layer_count)
    one, other = _heads_of(clean, chosen), _heads_of(corrupted, chosen)
    groups = _head_rows(corrupted, row)
    receiving = groups["last"] if rows == "last" else groups["text"] + groups["last"]
    rows_of = torch.tensor(receiving)
    path = np.zeros((len(chosen), heads, len(visual)))
    patches = _Patches(corrupted, pair, row, batch)
    for place, layer in enumerate(progress(chosen, description="path patching")):
        block = corrupted.parts.blocks[layer]
        (own, values, outputs), theirs = other[layer], one[layer][:2]
        check_output(own, values, row, outputs[row])
        width = outputs.shape[-1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for start in range(0, len(visual), batch):
                some = slice(start, start + batch)
                change = change_by_key((own, values), theirs, head, rows_of, visual[some])
                changed = (outputs[receiving, part].double() + change).to(outputs.dtype)
                sites, columns = [receiving] * len(changed), [part] * len(changed)
                found = patches.change(layer, block.output, changed, sites, columns)
                path[place, head, some] = found
    return xr.Dataset(
        {
            "path": (("layer", "head", "visual"), path, {"units": "logit"}),
            "clean": ((), float(aim)),
            "corrupted": ((), float(base)),
        },
        {"layer": chosen, "head": range(heads), **visual_places(pair.clean)},
        _attributes(vlm, pair) | {"rows": rows},
    )


class _Heads(NamedTuple):
    """What one layer's heads attend with and give: values and outputs are [tokens, width]."""

    attention: LayerAttention
    values: torch.Tensor
    outputs: torch.Tensor


def _outputs_of(whole: TextPass, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """Run a pass, and keep what the heads of some layers give: [tokens, width]."""
    outputs: dict[int, torch.Tensor] = {}

    def see(layer: int, _module: Any, args: tuple, _options: dict) -> None:
        outputs[layer] = args[0][0]

    blocks = whole.parts.blocks
    whole.run([(blocks[one].output, "pre", partial(see, one)) for one in layers], rows=[0])
    return outputs


def _heads_of(whole: TextPass, layers: Sequence[int]) -> dict[int, _Heads]:
    """Run passes, and keep what the heads of some layers do."""
    values: dict[int, torch.Tensor] = {}
    attention: dict[int, LayerAttention] = {}

    def see_values(layer: int, _module: Any, _args: tuple, _options: dict, output: Any) -> None:
        values[layer] = output[0]

    def see_attention(seen: LayerAttention) -> None:
        if seen.layer in values:
            attention[seen.layer] = seen

    blocks = whole.parts.blocks
    with whole.attention(see_attention):
        whole.run([(blocks[one].values, "post", partial(see_values, one)) for one in layers], [0])
    outputs = _outputs_of(whole, layers)
    return {layer: _Heads(attention[layer], values[layer], outputs[layer]) for layer in layers}


class _Patches:
    """Runs the corrupted pass with patches, several side by side."""

    def __init__(self, whole: TextPass, pair: PromptPair, row: int, batch: int) -> None:
        self._whole, self._pair, self._row, self._batch = whole, pair, row, batch
        self._bases: dict[tuple[int, int], np.ndarray] = {}

    def _differences(self, layer: int, count: int, hooks: Sequence[Hook] = ()) -> np.ndarray:
        logits = self._whole.run(hooks, [self._row], batch=count, first_layer=layer)
        return self._pair.difference(logits[:, 0]).cpu().numpy()

    def change(
        self,
        layer: int,
        module: Any,
        source: torch.Tensor,
        rows: Sequence[Sequence[int]],
        columns: Sequence[slice] | None = None,
    ) -> np.ndarray:
        """Change of the logit difference, for each entry of ``rows``, with its rows patched.

        Parameters
        ----------
        layer, module
            A module of this layer, whose input is patched.
        source
            The module's input in the clean pass, [tokens, width]; or for each entry what its rows
            become, [entries, rows, columns].
        rows, columns
            What is patched in each run; all columns when not given.
        """
        found = []
        for start in range(0, len(rows), self._batch):
            here = range(start, min(start + self._batch, len(rows)))

            def patch(_module: Any, args: tuple, options: dict, here: range = here) -> Any:
                states = (args[0] if args else options["hidden_states"]).clone()
                for place, i in enumerate(here):
                    part = slice(None) if columns is None else columns[i]
                    at = list(rows[i])
                    states[place, at, part] = source[at, part] if source.ndim == 2 else source[i]
                if args:
                    return (states, *args[1:]), options
                return args, options | {"hidden_states": states}

            alike = layer, len(here)  # as many side by side round alike
            if alike not in self._bases:
                self._bases[alike] = self._differences(*alike)
            patched = self._differences(*alike, [(module, "pre", patch)])
            found.append(patched - self._bases[alike])
        return np.concatenate(found)


def _check_batch(batch: int) -> None:
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch={batch!r}: give at least 1")


def _head_rows(whole: TextPass, row: int) -> dict[str, list[int]]:
    visual = set(whole.visual_slots.tolist())
    text = [p for p in range(min(visual), row) if p not in visual]
    return {"visual": sorted(visual), "text": text, "last": [row]}


def _texts(vlm: VLM, whole: TextPass) -> list[str]:
    ids = whole.prompt.inputs["input_ids"][0].tolist() + whole.ids[:-1]
    return token_texts(vlm.tokenizer, ids)


def _attributes(vlm: VLM, pair: PromptPair) -> dict[str, Any]:
    clean, corrupted = (
        token_texts(vlm.tokenizer, [int(token)])[0]
        for token in (pair.clean_token, pair.corrupted_token)
    )
    return {
        "model": vlm.name,
        "step": int(pair.step),
        "clean_token": clean,
        "corrupted_token": corrupted,
    }
