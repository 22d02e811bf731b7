"""Direct logit attribution: what heads, MLPs and visual tokens add to a logit."""

from __future__ import annotations

import numpy as np
import xarray as xr

from attnlens.plots.figure import Figure, finish, two_panels
from attnlens.plots.labels import readable
from attnlens.plots.matrix import check_dataset, draw_matrix, draw_places
from attnlens.plots.style import style, width_in_inches

HEIGHT = 2.3
"""Height of a panel, in inches."""


def attribution(data: xr.Dataset, *, width: str | float = "two-column") -> Figure:
    """Draw what heads and MLPs add to a logit, and what each visual token adds through all heads.

    Parameters
    ----------
    data
        From ``attnlens.lenses.direct_logit_attribution``.
    width
        "one-column" (3.35 inches), "two-column" (6.9 inches) or a number of inches.

    Returns
    -------
    Figure
        Left (above, where it is narrow): a cell for each head, and one for each MLP (M). Right: a
        cell for each visual token, in its place in the image. In units of the logit.

    Raises
    ------
    InputError
        If it is given something else, ``width`` cannot be used, or the prompt has several images.
    """
    check_dataset(data, "by_visual", "direct_logit_attribution")
    inches = width_in_inches(width)
    values = np.column_stack([data["by_head"].values, data["by_mlp"].values])
    unit = "added to the logit" + (" difference" if data.attrs["against"] else "")
    with style():
        panels = two_panels(inches, HEIGHT)
        left, right = panels.axes
        draw_matrix(left, values, unit)
        count = values.shape[1]
        left.set_xticks(range(count), [*map(str, data["head"].values), "M"])
        left.set_yticks(range(len(values)), map(str, data["layer"].values))
        left.set(xlabel="head, or MLP (M)", ylabel="layer")
        draw_places(right, data, data["by_visual"].sum(("layer", "head")).values, unit)
        token, against = (readable(data.attrs[name]) for name in ("token", "against"))
        what = f"of {token!r}" + (f" over {against!r}" if data.attrs["against"] else "")
        first, second = panels.places
        caption = (
            f"Direct logit attribution {what} at step {data.attrs['step']}: "
            f"{float(data['logit']):.2f} is the sum of what heads "
            f"({float(data['by_head'].sum()):.2f}), MLPs ({float(data['by_mlp'].sum()):.2f}), "
            "embedding and biases add to the residual stream, with the scale of the last norm as "
            f"it is. {first}: by layer. {second}: by visual token, through all heads."
        )
        finish(panels.figure, panels.height, caption)
    return panels.figure
