"""The tap on the attention function of a model's text layers, scoped to a ``with`` block.

A tap registers one function under a unique name in transformers' registries, together with the
mask function of the implementation that it stands for, and points the text model's configuration at
that name. The function calls the implementation it stands for, shows queries, keys and mask to its
listeners, and returns the output untouched. Vision blocks have a separate configuration and
are left alone. The model object gets a ``generate`` that calls the real one and shows its arguments
and result, and refuses continuous batching. When the last listener leaves, all of this is undone.
"""

from __future__ import annotations

import itertools
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnlens.models.cache import argument, cache_of, cache_parameter, capacity
from attnlens.models.family import Parts
from attnlens.recording.compiled import CompiledCalls
from attnlens.recording.generation import GenerateWatch, refuse_continuous_batching
from attnlens.recording.log_sums import LogSums

_numbers = itertools.count(1)
_NO_CHANGE = nullcontext()
_PREFIX = re.compile(r"^(attnlens_\d+_)+")
_BEGIN, _END, _SHOW = range(3)
"""What compiled graphs call, by place in a tap's ``CompiledCalls``."""


@dataclass(frozen=True)
class Pass:
    """A forward pass of the text model that is about to start.

    Attributes
    ----------
    tokens
        Number of new tokens.
    past
        Number of cached tokens before them.
    keys
        Number of keys that every layer must see: all slots of a static cache, else ``past +
        tokens``.
    offloaded
        Whether the cache leaves the device between passes.
    mask
        The attention mask of the call: [batch, keys], [batch, 1 or heads, tokens, keys], or None.
    own_mask
        Whether the caller spelled the mask out by row and key; it may then hide more than padding.
    """

    tokens: int
    past: int
    keys: int
    offloaded: bool = False
    mask: torch.Tensor | None = None
    own_mask: bool = False


@dataclass(frozen=True)
class LayerAttention:
    """What one layer attends with in the current pass.

    Of a compiled graph, the query may be overwritten after the listener returns.

    Attributes
    ----------
    layer
        Its index.
    query
        [batch, heads, tokens, dimension], after rotary embedding.
    key
        [batch, key heads, keys, dimension], after rotary embedding: the whole cache.
    mask
        The layer's attention mask.
    scaling
        Factor on the dot products.
    log_sums
        See ``attnlens.recording.log_sums``; None where the attention does not tell.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    log_sums: torch.Tensor | None = None


class Listener(Protocol):
    """Something that a tap shows every pass to."""

    def begin_pass(self, begun: Pass) -> None:
        """Start a forward pass."""

    def end_pass(self) -> None:
        """End the pass; attention seen before the next one belongs to no step."""

    def attention(self, seen: LayerAttention) -> None:
        """See one layer's attention of the current pass."""

    def tokens(self, input_ids: torch.Tensor) -> None:
        """See the token ids that are fed into the pass that comes next: [batch, tokens]."""

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """See that the cache is about to be stepped back to a slot.

        ``segments`` names what is inserted there; None stands for a response token that was cached
        after the slot and is fed again.
        """


class AttentionOnly:
    """A listener that hands each layer's attention on, and nothing else."""

    def __init__(self, see: Callable[[LayerAttention], None]) -> None:
        self.attention = see

    def begin_pass(self, begun: Pass) -> None:
        """Do nothing."""

    def end_pass(self) -> None:
        """Do nothing."""

    def tokens(self, input_ids: torch.Tensor) -> None:
        """Do nothing."""

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """Do nothing."""


class Editor(Protocol):
    """What changes the attention of every pass; listeners see the changed attention."""

    def begin_pass(self, tokens: int, past: int) -> None:
        """Start a forward pass over ``tokens`` new tokens on top of ``past`` cached ones."""

    def edit(self, seen: LayerAttention) -> torch.Tensor | None:
        """Return the mask that one layer's attention is computed with."""


class Tap:
    """The tap of one model; listeners and editors come and go in any order.

    It outlives its uses, since a compiled model would be compiled anew for new functions. While it
    is not installed, it holds nothing of the model.
    """

    def __init__(self, parts: Parts) -> None:
        self.listeners: dict[Listener, GenerateWatch] = {}
        self.editors: list[Editor] = []
        self.counted: tuple[Any, int] = (None, 0)
        """A cache, and how many keys it held after the last pass."""
        self._parts: Any = parts
        self._layers = _layers_of(parts)
        self._methods: dict[str, tuple[Any, Any]] = {}
        """Methods of the model object: ours, and what the object itself had under the name."""
        self._handles: list[Any] = []
        self._first_number: int | None = None
        """That of the first hook."""
        self._base = _base_of(parts)
        # the base's own name stays in ours: transformers looks for "flash" in it
        self._name = f"attnlens_{next(_numbers)}_{self._base}"
        self._compiled = CompiledCalls(
            self._begin_compiled, self._end_compiled, self._show_compiled
        )
        weakref.finalize(parts.text, self._compiled.remove)
        self._function = self._make_function()
        self._hooks = self._make_hooks()
        self._copied: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        """A mask of a compiled graph, and its copy."""
        self._given: tuple[Any, Any] = (None, None)
        """Cache and mask that the model was called with."""
        self._is_given = False
        """Whether its pass is under way."""

    def fits(self, parts: Parts) -> bool:
        """Whether layers and attention are still those that the tap was made for."""
        return self._base == _base_of(parts) and self._layers == _layers_of(parts)

    def install(self, parts: Parts) -> None:
        """Take the place of the model's attention function."""
        cache_parameter(parts.text)  # refused before anything is changed
        self._parts = parts
        config = parts.text.config
        AttentionInterface.register(self._name, self._function)
        masks = AttentionMaskInterface._global_mapping
        if self._base in masks:
            AttentionMaskInterface.register(self._name, masks[self._base])
        config._attn_implementation = self._name
        see, begin, end = self._hooks
        with self._own_numbers():
            self._handles = [
                parts.generator.register_forward_pre_hook(see, with_kwargs=True),
                parts.multimodal.register_forward_pre_hook(see, with_kwargs=True),
                parts.text.register_forward_pre_hook(begin, with_kwargs=True),
                parts.text.register_forward_hook(end, always_call=True),
            ]
        model = parts.generator
        self._shadow("generate", self._watched(model.generate))
        if hasattr(model, "init_continuous_batching"):
            self._shadow("init_continuous_batching", refuse_continuous_batching)

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Give hooks the numbers that they had before: compiled graphs depend on them."""
        free = RemovableHandle.next_id
        if self._first_number is None:
            self._first_number = free
        RemovableHandle.next_id = self._first_number
        try:
            yield
        finally:
            RemovableHandle.next_id = max(free, RemovableHandle.next_id)

    def _shadow(self, name: str, method: Callable) -> None:
        own = self._parts.generator.__dict__
        self._methods[name] = (method, own.get(name))
        own[name] = method

    def uninstall(self) -> None:
        """Leave the model as it was found."""
        for handle in self._handles:
            handle.remove()
        config = self._parts.text.config
        # a setting that somebody else made inside the block is theirs: leave it
        if config._attn_implementation == self._name:
            config._attn_implementation = self._base
        AttentionInterface._global_mapping.pop(self._name, None)
        AttentionMaskInterface._global_mapping.pop(self._name, None)
        own = self._parts.generator.__dict__
        for name, (ours, theirs) in self._methods.items():
            if own.get(name) is ours:
                del own[name]
                if theirs is not None:
                    own[name] = theirs
        self._parts, self._handles, self._methods = None, [], {}
        self.counted = (None, 0)
        self._given, self._is_given, self._copied = (None, None), False, (None, None)

    def _watched(self, generate: Callable) -> Callable:
        model = self._parts.generator

        def watched(*args: Any, **options: Any) -> Any:
            watches = tuple(self.listeners.values())
            for watch in watches:
                watch.before(model, args, options)
            output = generate(*args, **options)
            for watch in watches:
                watch.after(output)
            return output

        return watched

    def _make_function(self) -> Callable:
        module = next(m for m in self._parts.attention if m is not None)
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        base_function = ALL_ATTENTION_FUNCTIONS.get_interface(self._base, eager)
        show = torch.compiler.disable(self._show)
        edited = torch.compiler.disable(self._edited)
        name, base, editors, layers = self._name, self._base, self.editors, self._layers
        call = self._compiled.call
        loads_by_name = "flash" in base

        def tapped(
            module: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            **options: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            scaling = options.get("scaling")
            if editors:
                attention_mask = edited(module, query, key, attention_mask, scaling)
            if loads_by_name:
                # FlashAttention picks its kernel by the name in the configuration
                module.config._attn_implementation = base
            compiling = torch.compiler.is_compiling()
            # a single row is cheap
            watched = base == "sdpa" and not compiling and query.shape[2] > 1
            log_sums = LogSums() if watched else None
            try:
                with log_sums or _NO_CHANGE:
                    output = base_function(module, query, key, value, attention_mask, **options)
            finally:
                if loads_by_name:
                    module.config._attn_implementation = name
            masks = () if attention_mask is None else (attention_mask,)
            are_tensors = all(isinstance(mask, torch.Tensor) for mask in masks)
            if compiling and are_tensors and not editors:
                layer = layers.get(id(module))
                if layer is not None:
                    call(_SHOW, layer, (query, key, *masks), _factor(query, scaling))
            else:
                found = None if log_sums is None else log_sums.found
                show(module, query, key, attention_mask, scaling, found)
            return output

        return tapped

    def _layer_attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        log_sums: torch.Tensor | None = None,
    ) -> LayerAttention | None:
        """Return what to show; None for another model that shares this configuration object."""
        layer = self._layers.get(id(module))
        if layer is None:
            return None
        return LayerAttention(layer, query, key, mask, _factor(query, scaling), log_sums)

    def _edited(self, *call: Any) -> torch.Tensor | None:
        """Return the mask after all edits."""
        seen = self._layer_attention(*call)
        if seen is None:
            return call[3]
        for editor in self.editors:
            seen = replace(seen, mask=editor.edit(seen))
        return seen.mask

    def _show(self, *call: Any) -> None:
        seen = self._layer_attention(*call)
        if seen is not None:
            self._hand_on(seen)

    def _show_compiled(self, layer: int, tensors: Sequence[torch.Tensor], factor: float) -> None:
        """Hand on copies, but for the cache's own keys: a compiled graph reuses other memory."""
        query, key, *masks = tensors
        mask = masks[0] if masks else None
        if mask is not None and query.shape[2] == 1:  # with more, nothing waits
            if mask is not self._copied[0]:
                self._copied = (mask, mask.clone())  # one for all layers
            mask = self._copied[1]
        cached = [getattr(one, "keys", None) for one in getattr(self.counted[0], "layers", ())]
        if not any(keys is not None and keys.data_ptr() == key.data_ptr() for keys in cached):
            key = key.clone()
        self._hand_on(LayerAttention(layer, query, key, mask, factor))

    def _hand_on(self, seen: LayerAttention) -> None:
        with torch.no_grad() if torch.is_grad_enabled() else _NO_CHANGE:
            for listener in tuple(self.listeners):
                listener.attention(seen)

    def _make_hooks(self) -> tuple[Callable, Callable, Callable]:
        """Return what runs before the whole model and its parts, before and after the text model.

        Compiled, the first hook splits the graph before anything is computed, the others do not.
        """
        see_called = torch.compiler.disable(self._see_given)
        begin_called = torch.compiler.disable(self._begin_called)
        end_called = torch.compiler.disable(self._end_pass)
        call = self._compiled.call

        def see(module: Any, args: tuple, options: dict) -> None:
            if not (torch.compiler.is_compiling() and self._is_given):
                see_called(module, args, options)

        def begin(module: Any, args: tuple, options: dict) -> None:
            fed = options.get("inputs_embeds")
            if fed is None:
                fed = options.get("input_ids", args[0] if args else None)
            if fed is None:
                return
            if torch.compiler.is_compiling() and self._is_given:
                call(_BEGIN, fed.shape[1])
            else:
                begin_called(module, fed.shape[1], args, options)

        def end(*_: Any) -> None:
            if torch.compiler.is_compiling() and self._is_given:
                call(_END)
            else:
                end_called()

        return see, begin, end

    def _begin_called(self, module: Any, tokens: int, args: tuple, options: dict) -> None:
        mask = argument(module, args, options, "attention_mask")
        self._begin_pass(tokens, cache_of(module, args, options), mask)

    def _begin_compiled(self, tokens: int, *_: Any) -> None:
        self._begin_pass(tokens, *self._given)

    def _end_compiled(self, *_: Any) -> None:
        self._end_pass()

    def _begin_pass(self, tokens: int, cache: Any, mask: Any) -> None:
        past = self._past(cache)
        self.counted = (cache, past + tokens)
        for editor in self.editors:
            editor.begin_pass(tokens, past)
        own_mask = isinstance(mask, torch.Tensor) and mask.ndim == 4
        if isinstance(mask, dict):  # made by generate, one for each kind of layer
            mask = mask.get("full_attention")
        begun = Pass(
            tokens=tokens,
            past=past,
            keys=capacity(cache) or past + tokens,
            offloaded=bool(getattr(cache, "offloading", False)),
            mask=mask,
            own_mask=own_mask,
        )
        for listener in tuple(self.listeners):
            listener.begin_pass(begun)

    def _end_pass(self, *_: Any) -> None:
        self._given, self._is_given, self._copied = (None, None), False, (None, None)
        for listener in tuple(self.listeners):
            listener.end_pass()

    def _past(self, cache: Any) -> int:
        """Count the cached tokens.

        A static cache counts on the device, and reading that waits for the device: within one
        generation our own count serves.
        """
        length = 0 if cache is None else cache.get_seq_length()
        if isinstance(length, torch.Tensor):
            counted_cache, counted = self.counted
            return counted if counted_cache is cache and counted else int(length)
        return int(length)

    def _see_given(self, module: Any, args: tuple, options: dict) -> None:
        mask = argument(module, args, options, "attention_mask")
        self._given = (cache_of(module, args, options), mask)
        self._is_given = True
        ids = options.get("input_ids", args[0] if args else None)
        if ids is not None:
            for listener in tuple(self.listeners):
                listener.tokens(ids)


def _factor(query: torch.Tensor, scaling: float | None) -> float:
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def _base_of(parts: Parts) -> str:
    return parts.text.config._attn_implementation or "eager"


def _layers_of(parts: Parts) -> dict[int, int]:
    """Index of each layer by the identity of its attention module."""
    return {id(m): i for i, m in enumerate(parts.attention) if m is not None}


_taps: dict[int, Tap] = {}
"""The taps that are installed at the moment, by the text model that they are on."""
_kept: weakref.WeakKeyDictionary[Any, Tap] = weakref.WeakKeyDictionary()
"""The tap that was on a text model last."""


def _open(parts: Parts) -> Tap:
    """Return the tap of a model, which is installed where there is none."""
    tap = _taps.get(id(parts.text))
    if tap is None:
        tap = _kept.get(parts.text)
        if tap is None or not tap.fits(parts):
            tap = _kept[parts.text] = Tap(parts)
        tap.install(parts)
        _taps[id(parts.text)] = tap
    return tap


def _close(parts: Parts, tap: Tap) -> None:
    """Uninstall a tap that nobody uses."""
    if not tap.listeners and not tap.editors:
        del _taps[id(parts.text)]
        tap.uninstall()


def attach(parts: Parts, listener: Listener, watch: GenerateWatch) -> None:
    """Show every pass and every call of ``generate`` from now on to a listener."""
    _open(parts).listeners[listener] = watch


def detach(parts: Parts, listener: Listener) -> None:
    """Take a listener off a model."""
    tap = _taps[id(parts.text)]
    del tap.listeners[listener]
    _close(parts, tap)


def attach_editor(parts: Parts, editor: Editor) -> None:
    """Let an editor change every pass from now on."""
    _open(parts).editors.append(editor)


def detach_editor(parts: Parts, editor: Editor) -> None:
    """Take an editor off a model."""
    tap = _taps[id(parts.text)]
    tap.editors.remove(editor)
    _close(parts, tap)


def attention_implementation(parts: Parts) -> str:
    """Name of the attention implementation that a model runs, with or without a tap on it."""
    return _PREFIX.sub("", parts.text.config._attn_implementation or "eager")


def notify_step_back(parts: Parts, start: int, segments: Sequence[str | None]) -> None:
    """Notify a model's listeners that its cache is about to be stepped back; see ``Listener``."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        tap.counted = (None, 0)
        for listener in tuple(tap.listeners):
            listener.step_back(start, segments)


def notify_new_keys(parts: Parts) -> None:
    """Notify a model's tap that keys entered the cache without a pass."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        tap.counted = (None, 0)


def notify_response(parts: Parts, ids: torch.Tensor) -> None:
    """Note a response [batch, steps] that the model was fed without ``generate``."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        for watch in tap.listeners.values():
            watch.sequences = ids
