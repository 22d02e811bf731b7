"""The segment of every key of a prompt, from its token ids."""

from __future__ import annotations

import numpy as np

from attnlens.segments import PADDING


def label_segments(
    ids: np.ndarray,
    *,
    visual_ids: tuple[int, ...],
    vision_end_id: int,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Label the keys of one prompt; see ``attnlens.segments`` for the names.

    Parameters
    ----------
    ids
        int [keys]: token ids.
    visual_ids
        Ids of image and video placeholder tokens.
    vision_end_id
        Id of the token that closes an image or a video.
    mask
        [keys]: 0 where a key is left padding.

    Returns
    -------
    numpy.ndarray
        str [keys]. What stands between two images counts as ``query``.
    """
    visible = np.ones(len(ids), dtype=bool) if mask is None else np.asarray(mask).astype(bool)
    visual = np.isin(ids, visual_ids) & visible
    labels = np.full(len(ids), "query", dtype="<U10")
    if visual.any():
        first_visual = int(np.argmax(visual))
        labels[:first_visual] = "system"
        # only what closes an image: a stray token in the user's text is text
        closes = (ids == vision_end_id) & np.concatenate([[False], visual[:-1]])
        labels[closes] = "vision_end"
    labels[int(np.argmax(visible))] = "sink"
    labels[visual] = "visual"
    labels[~visible] = PADDING
    return labels
