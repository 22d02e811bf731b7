"""Visual share while a response is generated, from what is recorded so far."""

from __future__ import annotations

from attnlens.recording.recorder import QueryRecorder


def online_share(recorder: QueryRecorder, definition: str, count: int) -> list[float]:
    """Visual share at the last steps; a fraction each, mean over layers (and heads).

    Parameters
    ----------
    recorder
        Has recorded every pass so far.
    definition
        ``mass`` or ``look-back``, with the formulas of ``attnlens.measures.definitions``; copied
        tokens do not count as visual.
    count
        How many steps; fewer are returned at the beginning. ``look-back`` leaves out step 0.
    """
    rows = recorder.latest(count)
    if not rows.size:
        return []
    layout = recorder.layout
    names = layout.names
    mass = rows[0].astype(float)  # rows, layers, heads, columns
    visual = mass[..., [n == "visual" for n in names]].sum(-1)
    if definition == "mass":
        return visual.mean((1, 2)).tolist()
    before = mass[..., [n in ("sink", "system") for n in names]].sum(-1)
    share = visual.mean(2) / (mass.sum(-1) - before).mean(2)
    steps = recorder.recorded_steps
    return share.mean(1).tolist()[-min(count, steps - 1) :] if steps > 1 else []
