"""Ways of looking again: what is done to a generation, when, and against which control."""

from attnlens.interventions.base import Intervention
from attnlens.interventions.boost import Boost
from attnlens.interventions.close import InsertAndClose
from attnlens.interventions.copy import Copy
from attnlens.interventions.inject import ForceTokens, Inject
from attnlens.interventions.knockout import Knockout
from attnlens.interventions.pieces import POSITIONS
from attnlens.interventions.route import Route
from attnlens.interventions.session import Session, intervene
from attnlens.interventions.triggers import At, AtStep, Every, Trigger, WhenVisualBelow

__all__ = [
    "POSITIONS",
    "At",
    "AtStep",
    "Boost",
    "Copy",
    "Every",
    "ForceTokens",
    "Inject",
    "InsertAndClose",
    "Intervention",
    "Knockout",
    "Route",
    "Session",
    "Trigger",
    "WhenVisualBelow",
    "intervene",
]
