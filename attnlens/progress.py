"""Progress bars, only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    description: str = "",
) -> Any:
    """Wrap an iterable in a progress bar with the time left.

    The bar is written to standard error if that is a terminal: logs and pipes stay clean. Without
    ``items`` it is moved by ``update``. ``initial`` is how many of ``total`` are done already.
    """
    from tqdm import tqdm

    return tqdm(items, total=total, initial=initial, desc=description, disable=None, leave=False)


@contextmanager
def transformers_bars_on_terminal_only() -> Iterator[None]:
    """Show transformers' own progress bars only on a terminal, inside the block."""
    from transformers.utils import logging

    silence = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if silence:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            logging.enable_progress_bar()
