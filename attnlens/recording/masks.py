"""The attention masks that a layer was given, as additive biases on selected rows.

A mask comes in several shapes: none (causal), boolean [batch, 1, queries, keys] (SDPA), additive
[batch, 1 or heads, queries, keys] (eager, or a user's own), boolean [batch, keys]
(FlashAttention's padding mask), a function of query and key (flex attention's ``BlockMask``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

from attnlens.errors import InputError
from attnlens.segments import PADDING


def select_rows(mask: torch.Tensor | BlockMask | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Keep the wanted query rows of a mask of any shape above.

    ``rows`` are int64 indices of queries within the pass. Returns [batch, 1 or heads, rows, keys],
    with a single row where the mask is the same for all.
    """
    if mask is None:
        return None
    if isinstance(mask, BlockMask):
        return _rows_of_block_mask(mask, rows.to(mask.kv_indices.device))
    if mask.ndim == 2:
        return mask[:, None, None, :].bool()
    if mask.ndim != 4:
        raise TypeError(
            f"an attention mask of {mask.ndim} dimensions cannot be recorded: use one of 2 or 4"
        )
    return mask if mask.shape[2] == 1 else mask[:, :, rows.to(mask.device)]


def _rows_of_block_mask(mask: BlockMask, rows: torch.Tensor) -> torch.Tensor:
    """Spell out the wanted rows of a mask of flex attention."""

    def of_rows(
        sequence: torch.Tensor, head: torch.Tensor, row: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return mask.mask_mod(sequence, head, rows[row], key)

    batch, heads, _, keys = mask.shape
    return create_mask(of_rows, batch, heads, len(rows), keys, device=rows.device)


def stack_biases(
    masks: list[torch.Tensor | None], first: Sequence[int], length: int, device: torch.device
) -> torch.Tensor | None:
    """Turn the masks of several one-query passes into one additive bias.

    Each is a mask from ``select_rows`` over the keys that its layer had at its step, of which the
    one at ``first`` was the first; those before and later ones, up to ``length``, are hidden.
    Returns float32 [batch, 1 or heads, rows, length]; None where nothing is hidden.
    """
    shapes = [m.shape for m in masks if m is not None]
    if not shapes and not any(first):
        return None
    batch, heads = max([1, *(s[0] for s in shapes)]), max([1, *(s[1] for s in shapes)])
    bias = torch.zeros(batch, heads, len(masks), length, dtype=torch.float32, device=device)
    for row, (mask, start) in enumerate(zip(masks, first, strict=True)):
        bias[:, :, row, :start] = float("-inf")
        if mask is not None:
            end = min(length, start + mask.shape[-1])
            bias[:, :, row, start:end] = as_bias(mask)[:, :, 0, : end - start]
            bias[:, :, row, end:] = float("-inf")
    return bias


def as_bias(mask: torch.Tensor) -> torch.Tensor:
    """Turn a boolean (True where a key is seen) or additive mask into a float32 bias."""
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        return zeros.masked_fill_(~mask, float("-inf"))
    return mask.float()


def check_padding(
    segments: np.ndarray, mask: torch.Tensor | BlockMask | None, row: int, *, own: bool = False
) -> None:
    """Check that the keys labelled as padding are those that an attention mask hides.

    Parameters
    ----------
    segments
        str [batch, prompt keys]: the segment of every prompt key.
    mask
        The mask of a call: one of the above, or [batch, keys] of numbers that are 0 where a key is
        hidden.
    row
        Index within the pass of a query that comes after all prompt keys.
    own
        Whether the mask may hide more than padding.

    Raises
    ------
    InputError
        If they are not, or the mask belongs to another number of sequences.
    """
    labelled = segments == PADDING
    if isinstance(mask, BlockMask):
        mask = select_rows(mask, torch.tensor([row]))
    batch, keys = labelled.shape
    if mask is None:
        hidden = np.zeros_like(labelled)
    else:
        seen = mask[:, None, None] != 0 if mask.ndim == 2 else mask
        if seen.dtype != torch.bool:
            seen = seen > torch.finfo(seen.dtype).min / 2
        hidden = ~seen[:, :, row if seen.shape[2] > 1 else 0, :keys].any(1).cpu().numpy()
        # transformers hides the keys that a mask is too short for
        missing = keys - hidden.shape[1]
        hidden = np.pad(hidden, ((0, 0), (0, missing)), constant_values=True)
        if len(hidden) == 1:  # one mask for all sequences
            hidden = hidden.repeat(batch, axis=0)
    if len(hidden) % batch:
        raise InputError(
            f"the attention mask of the call has {len(hidden)} sequences where the prompt has "
            f"{batch}: record the batch that is generated"
        )
    labelled = labelled.repeat(len(hidden) // batch, axis=0)
    wrong = np.argwhere(labelled & ~hidden if own else hidden != labelled)
    if len(wrong):
        sequence, slot = wrong[0].tolist()
        does = "hides" if hidden[sequence, slot] else "shows"
        name = str(segments[sequence * batch // len(hidden), slot])
        raise InputError(
            f"the attention mask of the call {does} key {slot} of sequence {sequence}, which is "
            f"labelled {name!r}: pad on the left, label the keys that the mask hides "
            f"{PADDING!r} and no others, and pass that mask"
        )
