"""The taps that are installed at the moment, by the text model that they are on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnlens.models.family import Parts
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.tap import Editor, Listener, Tap

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
