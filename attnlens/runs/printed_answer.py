"""The answer on the terminal while it is generated."""

from __future__ import annotations

import sys
from typing import Any

from transformers import TextStreamer

from attnlens.text import printable


class PrintedAnswer(TextStreamer):
    """Prints an answer while it is generated, with control characters shown as escapes.

    Parameters
    ----------
    tokenizer
        Turns tokens into text.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text."""
        encoding = sys.stdout.encoding or "utf-8"
        shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        super().on_finalized_text(shown, stream_end)
