"""Progress bars, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    description: str = "",
) -> Any:
    """Wrap an iterable in a progress bar with the time left.

    The bar goes to standard error and only where that is a terminal: logs and pipes stay clean.

    Parameters
    ----------
    items
        What to iterate over; None gives a bar that is moved with ``update``.
    total, initial
        Number of items, and how many of them are done already.
    description
        What is being done.
    """
    from tqdm import tqdm

    return tqdm(items, total=total, initial=initial, desc=description, disable=None, leave=False)
