"""TransformerLens: its bridge on our models, and traces and activations recorded by it alone.

https://transformerlensorg.github.io/TransformerLens
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.lenses.optional import copy_structure, library
from attnlens.lenses.text_pass import response_ids
from attnlens.lenses.weights import Generation
from attnlens.models.families import family_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.recording.trace import Trace

__all__ = ["activation_cache", "bridge", "record"]


def bridge(vlm: VLM) -> Any:
    """Build a ``TransformerBridge`` on a model, which stays as it is.

    The bridge works on a copy of the model's modules, in eager attention, that shares its weights,
    and on a copy of its tokenizer. Nothing is installed, and torchvision is not needed: attnlens
    prepares the pictures. ``enable_compatibility_mode`` rewrites weights, so it first gives the
    bridge its own.

    Parameters
    ----------
    vlm
        From ``attnlens.load``.

    Returns
    -------
    transformer_lens.model_bridge.TransformerBridge
        Its ``generate`` is refused, because it loses the cache or the image's positions in these
        models; ``hf_generate`` works, also under ``bridge.hooks``, and ``attnlens.record(bridge,
        prompt)`` around it records as usual.

    Raises
    ------
    InputError
        If TransformerLens is not installed, or has no adapter for the family, or
        none that has been verified.

    Examples
    --------
    >>> model = attnlens.lenses.transformer_lens.bridge(vlm)  # doctest: +SKIP
    >>> inputs = dict(prompt.inputs)  # doctest: +SKIP
    >>> logits, cache = model.run_with_cache(inputs.pop("input_ids"), **inputs)  # doctest: +SKIP
    """
    factory = library("transformer_lens.factories.architecture_adapter_factory")
    builder = library("transformer_lens.model_bridge.sources._bridge_builder")
    drivers = library("transformer_lens.model_bridge.sources.transformers_driver")
    architecture = type(vlm.model).__name__
    known = factory.SUPPORTED_ARCHITECTURES.get(architecture)
    if known is None:
        raise InputError(
            f"{vlm.name!r} is a {architecture}, for which TransformerLens "
            f"{_version()} has no adapter: use attnlens.lenses.nnsight or attnlens.record"
        )
    if not vlm.family.bridged:
        raise InputError(
            f"{vlm.family.name} has not been verified in TransformerLens: use "
            "attnlens.lenses.nnsight or attnlens.record"
        )
    model = copy_structure(vlm.model)
    model.set_attn_implementation("eager")  # other implementations return no weights
    parameter = next(model.parameters())
    config = builder.build_bridge_config_from_hf(
        copy.deepcopy(model.config), architecture, vlm.name, parameter.dtype
    )
    # the adapter asks for torchvision, which only its own way of loading needs
    adapter = type(known.__name__, (known,), {"required_libraries": []})(config)
    adapter.cfg.device = str(parameter.device)
    adapter.prepare_model(model)
    tokenizer = builder.configure_tokenizer(copy.deepcopy(vlm.tokenizer), adapter.cfg)
    driver = drivers.TransformersDriver(model, adapter, tokenizer)
    return _bridge_class()(model, adapter, tokenizer, driver=driver)


def _version() -> str:
    from importlib.metadata import version

    return version("transformer-lens")


def _bridge_class() -> type:
    """Return the class of our bridges: their own, where it would be wrong without a word."""
    base: Any = library("transformer_lens.model_bridge").TransformerBridge

    class TransformerBridge(base):
        """TransformerLens's bridge on a model of attnlens."""

        def generate(self, *_: Any, **__: Any) -> Any:
            """Refuse: wrong tokens would come out."""
            raise InputError(
                "bridge.generate loses the positions of the image's tokens in this model: use "
                "inputs = dict(prompt.inputs); bridge.hf_generate(inputs.pop('input_ids'), "
                "**inputs, max_new_tokens=...)"
            )

        def enable_compatibility_mode(self, *args: Any, **options: Any) -> None:
            """Fold the norms into the weights, in weights of the bridge's own."""
            own: dict[int, torch.nn.Parameter] = {}  # tied ones stay tied
            for module in self.original_model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        if id(weight) not in own:
                            own[id(weight)] = torch.nn.Parameter(
                                weight.detach().clone(), requires_grad=weight.requires_grad
                            )
                        module._parameters[name] = own[id(weight)]
            super().enable_compatibility_mode(*args, **options)

    return TransformerBridge


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
    """Generate and record by TransformerLens alone: an independent check of ``attnlens.record``.

    The weights are those that its ``hook_pattern`` shows, of eager attention, added up by segment.

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
        If TransformerLens is not installed or has no adapter for the family, a layer is not there,
        or an option cannot be recorded.
    """
    options["max_new_tokens"] = max_new_tokens
    generation = Generation(vlm, prompt, layers, visual_map, map_heads, options)
    model = bridge(vlm)

    def add(weights: torch.Tensor, hook: Any, layer: int) -> None:
        generation.weights.add(layer, weights)

    hooks: list[tuple[str, Callable]] = [
        (f"blocks.{layer}.attn.hook_pattern", partial(add, layer=layer))
        for layer in generation.weights.layers
    ]
    with model.hooks(fwd_hooks=hooks), torch.no_grad():
        sequences = model.original_model.generate(**prompt.inputs, **options)
    return generation.traces(sequences, "eager")


def activation_cache(
    model: Any, prompt: Prompt, response: Sequence[int] | Trace = (), **options: Any
) -> tuple[torch.Tensor, Any]:
    """Run a prompt, and a response to it, in one pass, and keep the activations.

    Parameters
    ----------
    model
        From ``bridge``.
    prompt
        From ``vlm.prompt``.
    response
        Token ids that follow the prompt, or a trace, whose response is taken.
    **options
        Of ``bridge.run_with_cache``, such as ``names_filter``.

    Returns
    -------
    logits
        [1, tokens, vocabulary]; row ``len(prompt.segments) - 1 + t`` predicts token t of the
        response.
    cache
        TransformerLens's ``ActivationCache``, for its own analysis tools and CircuitsVis.

    Raises
    ------
    InputError
        If a token id of the response is unknown, or a trace is that of another prompt or was made
        under an intervention.
    """
    fed = isinstance(response, Trace) or len(response)
    known = response_ids(response, prompt, int(model.cfg.d_vocab)) if fed else []
    config = model.original_model.config
    inputs = family_of(config, model.cfg.model_name).append(config, prompt.inputs, known)
    with torch.no_grad():
        return model.run_with_cache(inputs.pop("input_ids"), **inputs, **options)
