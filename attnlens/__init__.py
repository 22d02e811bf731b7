"""Measure how much a vision-language model still looks at the image while it reasons.

Everything here is imported when it is first used, so that ``import attnlens`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attnlens._version import __version__ as __version__

if TYPE_CHECKING:
    from attnlens import interventions, lenses, measures, plots, testbed
    from attnlens.errors import InputError
    from attnlens.experiments.dependence import dependence
    from attnlens.experiments.force import force, replay
    from attnlens.experiments.recover import recover
    from attnlens.experiments.recovery import Recovery
    from attnlens.experiments.run import run
    from attnlens.models.load import VLM, load
    from attnlens.models.prompt import Prompt
    from attnlens.recording.record import record
    from attnlens.recording.trace import Trace

_HOMES = {
    "InputError": "attnlens.errors",
    "Prompt": "attnlens.models.prompt",
    "Recovery": "attnlens.experiments.recovery",
    "Trace": "attnlens.recording.trace",
    "VLM": "attnlens.models.load",
    "dependence": "attnlens.experiments.dependence",
    "force": "attnlens.experiments.force",
    "load": "attnlens.models.load",
    "recover": "attnlens.experiments.recover",
    "record": "attnlens.recording.record",
    "replay": "attnlens.experiments.force",
    "run": "attnlens.experiments.run",
}
_MODULES = ("explorer", "interventions", "lenses", "measures", "plots", "testbed")

__all__ = [
    "VLM",
    "InputError",
    "Prompt",
    "Recovery",
    "Trace",
    "dependence",
    "explorer",
    "force",
    "interventions",
    "lenses",
    "load",
    "measures",
    "plots",
    "record",
    "recover",
    "replay",
    "run",
    "testbed",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"attnlens.{name}")
    raise AttributeError(f"module 'attnlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
