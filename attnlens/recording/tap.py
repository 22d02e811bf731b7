"""The tap on the attention function of a model's text layers, scoped to a ``with`` block.

A tap registers one function, and the mask function of the implementation that it stands for, under
a name of its own in transformers' registries, and points the text model's configuration at that
name. The function calls the implementation it stands for, shows queries, keys and mask to its
listeners, and returns the output untouched. Vision blocks have a configuration of their own and
are left alone. The model object gets a ``generate`` of its own that calls the real one and shows
its arguments and result, and refuses continuous batching. When the last listener goes, all of this
is taken back.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnlens.models.cache import cache_of, cache_parameter, capacity
from attnlens.models.family import Parts
from attnlens.recording.generation import GenerateWatch, refuse_continuous_batching

_numbers = itertools.count(1)
_NO_CHANGE = nullcontext()


@dataclass(frozen=True)
class Pass:
    """A forward pass of the text model that is about to start.

    Attributes
    ----------
    tokens
        Number of new tokens.
    past
        Number of cached tokens that they stand on.
    keys
        Number of keys that every layer is to see: all slots of a static cache, else ``past +
        tokens``.
    offloaded
        Whether the cache leaves the device between passes.
    mask
        The attention mask of the call: [batch, keys], [batch, 1 or heads, tokens, keys], or None.
    own_mask
        Whether the caller spelled the mask out by row and key, and may hide what is no padding.
    """

    tokens: int
    past: int
    keys: int
    offloaded: bool = False
    mask: torch.Tensor | None = None
    own_mask: bool = False


class Listener(Protocol):
    """What a tap shows each pass to."""

    def begin_pass(self, begun: Pass) -> None:
        """Start a forward pass."""

    def end_pass(self) -> None:
        """See that the pass is over; attention that comes before the next one is none of a step."""

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> None:
        """See one layer's attention of the current pass.

        ``query`` is [batch, heads, tokens, dimension] and ``key`` [batch, key heads, keys,
        dimension], both after rotary embedding; ``key`` is the whole cache.
        """

    def tokens(self, input_ids: torch.Tensor) -> None:
        """See the token ids that are fed into the pass that comes next: [batch, tokens]."""

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """See that the cache is stepped back to a slot, and the segments of what is inserted there.

        Called before it is done. None stands for a token of the response that was cached after the
        slot and is fed again.
        """


class Editor(Protocol):
    """What changes the attention of every pass; its changes are shown to the listeners."""

    def begin_pass(self, tokens: int, past: int) -> None:
        """Start a forward pass over ``tokens`` new tokens on top of ``past`` cached ones."""

    def edit(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor | None:
        """Return the mask that one layer's attention is computed with; see ``Listener``."""


class Tap:
    """The tap of one model; listeners come and go in any order.

    Parameters
    ----------
    parts
        The model's parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._layers = {id(module): i for i, module in enumerate(parts.attention)}
        self._listeners: dict[Listener, GenerateWatch] = {}
        self._editors: list[Editor] = []
        self._methods: dict[str, tuple[Any, Any]] = {}
        """Methods of the model object: ours, and what the object itself had under the name."""
        self._handles: list[Any] = []
        self._counted: tuple[Any, int] = (None, 0)
        self._name = ""
        self.base = ""

    def add(self, listener: Listener, watch: GenerateWatch) -> None:
        """Show every pass and call from now on to a listener; the first installs the tap."""
        if self.idle:
            self._install()
        self._listeners[listener] = watch

    def remove(self, listener: Listener) -> None:
        """Take a listener away; the last one removes the tap."""
        del self._listeners[listener]
        if self.idle:
            self._uninstall()

    def add_editor(self, editor: Editor) -> None:
        """Let an editor change every pass from now on; the first to come installs the tap."""
        if self.idle:
            self._install()
        self._editors.append(editor)

    def remove_editor(self, editor: Editor) -> None:
        """Take an editor away; the last to go removes the tap."""
        self._editors.remove(editor)
        if self.idle:
            self._uninstall()

    def step_back(self, start: int, segments: Sequence[str | None]) -> None:
        """Tell the listeners of an insertion; see ``Listener``."""
        self._counted = (None, 0)
        for listener in tuple(self._listeners):
            listener.step_back(start, segments)

    def new_keys(self) -> None:
        """Forget how many keys there are, since some came without a pass."""
        self._counted = (None, 0)

    def response(self, ids: torch.Tensor) -> None:
        """Note a response that was fed without ``generate``."""
        for watch in self._listeners.values():
            watch.sequences = ids

    @property
    def idle(self) -> bool:
        """Whether nobody listens or edits, and so nothing is installed."""
        return not self._listeners and not self._editors

    def _install(self) -> None:
        cache_parameter(self._parts.text)  # refused before anything is changed
        config = self._parts.text.config
        self.base = config._attn_implementation or "eager"
        # the base's own name stays in ours: transformers looks for "flash" in it
        self._name = f"attnlens_{next(_numbers)}_{self.base}"
        AttentionInterface.register(self._name, self._function(_resolve(self._parts, self.base)))
        masks = AttentionMaskInterface._global_mapping
        if self.base in masks:
            AttentionMaskInterface.register(self._name, masks[self.base])
        config._attn_implementation = self._name
        # compiled decoding must call back into Python here, not trace these
        begin = torch.compiler.disable(self._begin_pass)
        end = torch.compiler.disable(self._end_pass)
        see_tokens = torch.compiler.disable(self._see_tokens)
        self._handles = [
            self._parts.text.register_forward_pre_hook(begin, with_kwargs=True),
            self._parts.text.register_forward_hook(end, always_call=True),
            self._parts.multimodal.register_forward_pre_hook(see_tokens, with_kwargs=True),
        ]
        model = self._parts.generator
        self._shadow("generate", self._watched(model.generate))
        if hasattr(model, "init_continuous_batching"):
            self._shadow("init_continuous_batching", refuse_continuous_batching)

    def _shadow(self, name: str, method: Callable) -> None:
        own = self._parts.generator.__dict__
        self._methods[name] = (method, own.get(name))
        own[name] = method

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        config = self._parts.text.config
        # a setting that somebody else made inside the block is theirs: leave it
        if config._attn_implementation == self._name:
            config._attn_implementation = self.base
        AttentionInterface._global_mapping.pop(self._name, None)
        AttentionMaskInterface._global_mapping.pop(self._name, None)
        own = self._parts.generator.__dict__
        for name, (ours, theirs) in self._methods.items():
            if own.get(name) is ours:
                del own[name]
                if theirs is not None:
                    own[name] = theirs
        self._methods = {}

    def _watched(self, generate: Callable) -> Callable:
        def watched(*args: Any, **options: Any) -> Any:
            watches = tuple(self._listeners.values())
            for watch in watches:
                watch.before(self._parts.generator, args, options)
            output = generate(*args, **options)
            for watch in watches:
                watch.after(output)
            return output

        return watched

    def _function(self, base_function: Callable) -> Callable:
        show = torch.compiler.disable(self._show)
        edited = torch.compiler.disable(self._edited)
        name, base = self._name, self.base
        loads_by_name = "flash" in base

        def tapped(
            module: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            **options: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            attention_mask = edited(module, query, key, attention_mask, options.get("scaling"))
            if loads_by_name:
                # FlashAttention picks its kernel by the name in the configuration
                module.config._attn_implementation = base
            try:
                output = base_function(module, query, key, value, attention_mask, **options)
            finally:
                if loads_by_name:
                    module.config._attn_implementation = name
            show(module, query, key, attention_mask, options.get("scaling"))
            return output

        return tapped

    def _edited(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
    ) -> torch.Tensor | None:
        layer = self._layers.get(id(module))
        if layer is not None:
            factor = query.shape[-1] ** -0.5 if scaling is None else scaling
            for editor in self._editors:
                mask = editor.edit(layer, query, key, mask, factor)
        return mask

    def _show(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        layer = self._layers.get(id(module))
        if layer is None:  # another model that shares this configuration object
            return
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.no_grad() if torch.is_grad_enabled() else _NO_CHANGE:
            for listener in tuple(self._listeners):
                listener.attention(layer, query, key, mask, factor)

    def _begin_pass(self, _module: Any, args: tuple, options: dict) -> None:
        fed = options.get("inputs_embeds")
        if fed is None:
            fed = options.get("input_ids", args[0] if args else None)
        if fed is None:
            return
        cache = cache_of(self._parts.text, args, options)
        past, tokens = self._past(cache), fed.shape[1]
        self._counted = (cache, past + tokens)
        for editor in self._editors:
            editor.begin_pass(tokens, past)
        mask = options.get("attention_mask", args[1] if len(args) > 1 else None)
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
        for listener in tuple(self._listeners):
            listener.begin_pass(begun)

    def _end_pass(self, *_: Any) -> None:
        for listener in tuple(self._listeners):
            listener.end_pass()

    def _past(self, cache: Any) -> int:
        """Count the cached tokens.

        A static cache counts on the device, and reading that waits for the device: within one
        generation our own count serves.
        """
        length = 0 if cache is None else cache.get_seq_length()
        if isinstance(length, torch.Tensor):
            counted_cache, counted = self._counted
            return counted if counted_cache is cache and counted else int(length)
        return int(length)

    def _see_tokens(self, _module: Any, args: tuple, options: dict) -> None:
        ids = options.get("input_ids", args[0] if args else None)
        if ids is not None:
            for listener in tuple(self._listeners):
                listener.tokens(ids)


def _resolve(parts: Parts, base: str) -> Callable:
    """Find the function that an implementation's name stands for."""
    module = parts.attention[0]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)


_taps: dict[int, Tap] = {}


def attach(parts: Parts, listener: Listener, watch: GenerateWatch) -> Tap:
    """Add a listener to the tap of a model, which is made where there is none.

    The module-level table holds only taps that are installed at the moment.
    """
    tap = _taps.get(id(parts.text)) or Tap(parts)
    tap.add(listener, watch)
    _taps[id(parts.text)] = tap
    return tap


def detach(parts: Parts, listener: Listener) -> None:
    """Take a listener off the tap of a model."""
    tap = _taps[id(parts.text)]
    try:
        tap.remove(listener)
    finally:
        _drop_idle(parts, tap)


def attach_editor(parts: Parts, editor: Editor) -> Tap:
    """Add an editor to the tap of a model, which is made where there is none."""
    tap = _taps.get(id(parts.text)) or Tap(parts)
    tap.add_editor(editor)
    _taps[id(parts.text)] = tap
    return tap


def detach_editor(parts: Parts, editor: Editor) -> None:
    """Take an editor off the tap of a model."""
    tap = _taps[id(parts.text)]
    try:
        tap.remove_editor(editor)
    finally:
        _drop_idle(parts, tap)


def tell_of_step_back(parts: Parts, start: int, segments: Sequence[str | None]) -> None:
    """Tell whoever listens to a model that its cache is stepped back; see ``Listener``."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        tap.step_back(start, segments)


def tell_of_new_keys(parts: Parts) -> None:
    """Tell the tap of a model that keys were put into the cache without a pass."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        tap.new_keys()


def tell_of_response(parts: Parts, ids: torch.Tensor) -> None:
    """Tell whoever listens to a model the response that it was fed, [batch, steps]."""
    tap = _taps.get(id(parts.text))
    if tap is not None:
        tap.response(ids)


def _drop_idle(parts: Parts, tap: Tap) -> None:
    if tap.idle:
        _taps.pop(id(parts.text), None)
