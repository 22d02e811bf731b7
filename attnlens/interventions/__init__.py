"""Interventions: what is done to a generation, when, and against which control."""

from attnlens.interventions.base import Intervention as Intervention
from attnlens.interventions.base import Nothing as Nothing
from attnlens.interventions.boost import Boost as Boost
from attnlens.interventions.close import InsertAndClose as InsertAndClose
from attnlens.interventions.copy import Copy as Copy
from attnlens.interventions.inject import ForceTokens as ForceTokens
from attnlens.interventions.inject import Inject as Inject
from attnlens.interventions.knockout import Knockout as Knockout
from attnlens.interventions.pieces import POSITIONS as POSITIONS
from attnlens.interventions.route import Route as Route
from attnlens.interventions.session import Session as Session
from attnlens.interventions.session import intervene as intervene
from attnlens.interventions.triggers import At as At
from attnlens.interventions.triggers import AtStep as AtStep
from attnlens.interventions.triggers import Every as Every
from attnlens.interventions.triggers import Trigger as Trigger
from attnlens.interventions.triggers import WhenVisualBelow as WhenVisualBelow

__all__ = sorted(name for name, value in list(vars().items()) if callable(value) and name[0] != "_")
__all__ += ["POSITIONS"]
