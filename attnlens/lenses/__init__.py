"""Looking inside: nnsight and TransformerLens on our models, and what they are used for.

``nnsight`` and ``transformer_lens`` need the libraries of these names: ``pip install
'attnlens[lenses]'``. The other lenses need neither.
"""

from attnlens.lenses import nnsight as nnsight
from attnlens.lenses import transformer_lens as transformer_lens
from attnlens.lenses.direct_logit_attribution import (
    direct_logit_attribution as direct_logit_attribution,
)
from attnlens.lenses.edges import Edges as Edges
from attnlens.lenses.edges import edge_knockout as edge_knockout
from attnlens.lenses.edges import looking_heads as looking_heads
from attnlens.lenses.edges import window_sweep as window_sweep
from attnlens.lenses.logit_lens import logit_lens as logit_lens
from attnlens.lenses.patching import PromptPair as PromptPair
from attnlens.lenses.patching import activation_patching as activation_patching
from attnlens.lenses.patching import path_patching as path_patching

__all__ = sorted(name for name, value in list(vars().items()) if callable(value) and name[0] != "_")
__all__ += ["nnsight", "transformer_lens"]
