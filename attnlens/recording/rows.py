"""What was recorded of one layer: rows of attention mass, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from attnlens.recording.mass import Mass


@dataclass(frozen=True)
class RecordedRows:
    """What was recorded of one layer, in the order of recording.

    Attributes
    ----------
    positions
        int64 [rows]: key slot of each query.
    mass
        float32 [batch, rows, heads, columns].
    visual_weight
        float32 [batch, steps, visual] or None, of the rows that are steps.
    visual_nonzero
        int32 [batch, steps], of the rows that are steps.
    hidden
        int32 [batch, rows, heads, columns] or None; see ``Mass``.
    """

    positions: np.ndarray
    mass: np.ndarray
    visual_weight: np.ndarray | None
    visual_nonzero: np.ndarray
    hidden: np.ndarray | None = None


def join_rows(
    parts: list[tuple[list[int], Mass]], complete: set[int], first_step: int
) -> RecordedRows:
    """Join what was computed at different times.

    Parameters
    ----------
    parts
        Key slots of the queries, with what was computed of them.
    complete
        Key slots that all layers have seen; others are left out.
    first_step
        Key slot of the query of step 0.
    """
    positions = np.array([p for here, _ in parts for p in here], dtype=np.int64)
    order = _in_order(positions, complete)
    if not len(order):
        empty = np.zeros((0, 0, 0, 0), np.float32)
        return RecordedRows(positions[order], empty, None, np.zeros((0, 0), np.int32))
    maps = [m.visual_weight for _, m in parts if m.visual_weight is not None]
    steps = _in_order(positions[positions >= first_step], complete)
    hidden = None
    if any(m.hidden is not None for _, m in parts):
        none = torch.zeros((), dtype=torch.int32)
        counts = [(none if m.hidden is None else m.hidden).expand_as(m.by_column) for _, m in parts]
        hidden = torch.cat(counts, dim=1).numpy()[:, order]
    return RecordedRows(
        positions=positions[order],
        mass=torch.cat([m.by_column for _, m in parts], dim=1).numpy()[:, order],
        visual_weight=torch.cat(maps, dim=1).numpy()[:, steps] if maps else None,
        visual_nonzero=torch.cat([m.visual_nonzero for _, m in parts], dim=1).numpy()[:, steps],
        hidden=hidden,
    )


def _in_order(positions: np.ndarray, complete: set[int]) -> np.ndarray:
    """Find the indices that sort positions and leave out those that are not complete."""
    order = np.argsort(positions, kind="stable")
    return order[[int(p) in complete for p in positions[order]]]


def rows_before(parts: list[tuple[list[int], Mass]], slot: int) -> list[tuple[list[int], Mass]]:
    """Leave out the rows whose queries stand at a slot or after it."""
    kept = []
    for positions, mass in parts:
        wanted = [i for i, p in enumerate(positions) if p < slot]
        without_visual = len(positions) - mass.visual_nonzero.shape[1]  # prompt rows come first
        visual = [i - without_visual for i in wanted if i >= without_visual]
        weight = mass.visual_weight
        if wanted:
            left = Mass(
                by_column=mass.by_column[:, wanted],
                visual_weight=None if weight is None else weight[:, visual],
                visual_nonzero=mass.visual_nonzero[:, visual],
                hidden=None if mass.hidden is None else mass.hidden[:, wanted],
            )
            kept.append(([positions[i] for i in wanted], left))
    return kept
