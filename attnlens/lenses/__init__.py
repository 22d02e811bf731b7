"""The same recordings through nnsight and TransformerLens, for those who work in them.

Both libraries are optional: ``pip install 'attnlens[lenses]'`` brings them.
"""

from attnlens.lenses import nnsight as nnsight
from attnlens.lenses import transformer_lens as transformer_lens

__all__ = ["nnsight", "transformer_lens"]
