"""nnsight (arXiv 2407.14561): its own model around ours, and traces recorded by it alone.

https://nnsight.net
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.interventions.base import Edit, Intervention, select_heads
from attnlens.interventions.score_editor import ScoreEditor
from attnlens.interventions.triggers import AtStep
from attnlens.lenses.optional import copy_structure, library
from attnlens.lenses.weights import Generation
from attnlens.models.families import parts_of
from attnlens.models.family import Parts
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.recording.masks import as_bias, select_rows
from attnlens.recording.tap import LayerAttention
from attnlens.recording.trace import Trace

__all__ = ["attention_calls", "edit", "record", "wrap"]

CALL = "attention_interface"
"""The name under which transformers' attention modules call the attention function."""


def wrap(vlm: VLM) -> Any:
    """Wrap a model in nnsight's ``TransformersModel``.

    ``attnlens.record(vlm, prompt)`` around its ``generate`` records as usual. nnsight leaves its
    own entry points on the modules of the model that it wraps.

    Parameters
    ----------
    vlm
        From ``attnlens.load``.

    Returns
    -------
    nnsight.TransformersModel
        On ``vlm.model`` itself, with its processor.

    Raises
    ------
    InputError
        If nnsight is not installed.

    Examples
    --------
    >>> model = attnlens.lenses.nnsight.wrap(vlm)  # doctest: +SKIP
    >>> with attnlens.record(vlm, prompt) as recorder:  # doctest: +SKIP
    ...     with model.generate(prompt.inputs, max_new_tokens=64):
    ...         states = model.model.language_model.layers[2].output.save()
    """
    return _wrapped(vlm.model, vlm.processor)


def _wrapped(model: Any, processor: Any) -> Any:
    nnsight = library("nnsight")
    return nnsight.TransformersModel(model, task="image-text-to-text", processor=processor)


def attention_calls(model: Any) -> list[Any]:
    """Find the call of the attention function in each text layer.

    Parameters
    ----------
    model
        From ``wrap``.

    Returns
    -------
    list
        nnsight's operations, by layer. In a running trace, ``.inputs`` of one is ``((module, query,
        key, value, mask), options)``: queries [batch, heads, tokens, dimension], keys and values
        [batch, key heads, keys, dimension], after rotary embedding, and ``options["scaling"]``.

    Raises
    ------
    InputError
        If a layer calls it under another name.
    """
    wrapped = model._module
    names = {id(module): name for name, module in wrapped.named_modules()}
    calls = []
    for module in parts_of(wrapped).attention:
        envoy = model
        for part in names[id(module)].split("."):
            envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
        names_in = [name for name in envoy.source.names if name.startswith(CALL)]
        if not names_in:
            raise InputError(
                f"{names[id(module)]} ({type(module).__name__}) calls no {CALL}, so nnsight cannot "
                "show its queries and keys: use attnlens.record"
            )
        calls.append(getattr(envoy.source, names_in[-1]))
    return calls


def record(
    vlm: VLM,
    prompt: Prompt | PromptBatch,
    max_new_tokens: int = 256,
    *,
    layers: Iterable[int] | None = None,
    visual_map: bool | None = None,
    map_heads: Iterable[tuple[int, int]] | None = None,
    **options: Any,
) -> list[Trace]:
    """Generate and record by nnsight alone: an independent check of ``attnlens.record``.

    At every step nnsight gives the queries and keys that the attention function is called with.
    Their softmax is added up by segment. The model is not changed: nnsight works on a copy of its
    modules that shares the weights.

    Parameters
    ----------
    vlm, prompt
        From ``attnlens.load``, and from ``vlm.prompt`` or ``vlm.batch``.
    max_new_tokens
        Longest answer.
    layers
        Indices of the layers to record; all when not given.
    visual_map
        Whether to keep the weight of each visual token, mean over heads, by step and layer. When
        not given, it is kept while it is small, as in ``attnlens.run``.
    map_heads
        (layer, head) pairs for which the weight of each visual token is kept.
    **options
        Of ``generate``, such as ``do_sample``.

    Returns
    -------
    list of Trace
        One for each prompt. Steps are aligned as those of ``attnlens.record``.

    Raises
    ------
    InputError
        If nnsight is not installed, a layer is not there, or an option cannot be recorded.
    """
    options["max_new_tokens"] = max_new_tokens
    generation = Generation(vlm, prompt, layers, visual_map, map_heads, options)
    model = _wrapped(copy_structure(vlm.model), vlm.processor)
    calls = attention_calls(model)
    returned = {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*was never reached.*")  # an open loop ends so
        with model.generate(**options) as tracer:
            with tracer.invoke(dict(prompt.inputs)):
                for _ in tracer.iter[:]:
                    for layer in generation.weights.layers:
                        (_, query, key, _, mask), given = calls[layer].inputs
                        weights = _weights(query, key, mask, given["scaling"])
                        generation.weights.add(layer, weights)
            with tracer.invoke():
                returned["sequences"] = tracer.result
    return generation.traces(returned["sequences"], "nnsight")


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Softmax of the last row, float64 [batch, heads, 1, keys], apart from our own functions."""
    repeated = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query[:, :, -1:].double() @ repeated.mT * scaling
    own = select_rows(mask, torch.tensor([query.shape[2] - 1]))
    return torch.softmax(scores if own is None else scores + as_bias(own).double(), dim=-1)


def edit(model: Any, prompt: Prompt, intervention: Intervention) -> None:
    """Boost or knock out visual keys in the current pass of a running nnsight trace.

    To be called inside ``model.trace`` or, at each step, inside ``model.generate``, before anything
    of the pass that comes after the first layer is read.

    Parameters
    ----------
    model
        From ``wrap``.
    prompt
        The prompt of the pass.
    intervention
        ``Boost`` or ``Knockout``, or several joined by ``+``, each with ``AtStep`` as its trigger.

    Raises
    ------
    InputError
        If it is another intervention, or another trigger.

    Examples
    --------
    >>> with model.generate(prompt.inputs, max_new_tokens=8) as tracer:  # doctest: +SKIP
    ...     for step in tracer.iter[:8]:
    ...         attnlens.lenses.nnsight.edit(model, prompt, Knockout(when=AtStep(3)))
    """
    parts = parts_of(model._module)
    editor = _editor(parts, prompt, intervention)
    for layer, call in enumerate(attention_calls(model)):
        (module, query, key, value, mask), given = call.inputs
        tokens, keys = query.shape[2], key.shape[2]
        editor.begin_pass(tokens, keys - tokens)
        mask = editor.edit(LayerAttention(layer, query, key, mask, given["scaling"]))
        call.inputs = ((module, query, key, value, mask), given)


def _editor(parts: Parts, prompt: Prompt, intervention: Intervention) -> ScoreEditor:
    editor = ScoreEditor()
    for part in intervention.parts:
        part.check(prompt, parts.layer_count, parts.head_count)
        if not isinstance(part, Edit) or not isinstance(part.when, AtStep) or part.until:
            raise InputError(
                f"{part!r}: only Boost and Knockout from AtStep on, without until, can be made an "
                "edit of nnsight; use attnlens.run for the others"
            )
        heads = select_heads(part.layers, part.heads, parts.layer_count, parts.head_count)
        editor.add(part, prompt, heads, len(prompt.segments) - 1 + part.when.step)
    return editor
