"""The vision-only reflection: visual tokens go in, and the tag is closed at once."""

from __future__ import annotations

from typing import Any

from attnlens.interventions.base import Intervention, Joined, Words
from attnlens.interventions.copy import Copy
from attnlens.interventions.inject import Inject
from attnlens.interventions.triggers import Trigger


class InsertAndClose(Joined):
    """Insert the visual tokens before the trigger, and force the closing tag after it.

    Parameters
    ----------
    when
        The trigger, such as ``At("<back>")``.
    close
        The closing tag, with the spaces that the model writes around it.
    insert
        What is inserted, with the same trigger; ``Copy`` when not given.
    """

    forms = ("close:TEXT",)

    @classmethod
    def from_words(cls, words: Words) -> InsertAndClose | None:
        """See ``Intervention``."""
        if words.name != "close" or not words.value:
            return None
        return cls(words.when, words.value, Copy(words.when, positions=words.positions))

    @classmethod
    def takes_whole(cls, text: str) -> bool:
        """See ``Intervention``."""
        return text.startswith("close:")

    def __init__(self, when: Trigger, close: str, insert: Intervention | None = None) -> None:
        inserted = Copy(when=when) if insert is None else insert
        super().__init__((*inserted.parts, Inject(close, when=when)))
        self.close = close

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"insert-and-close:{self.close.strip()}"

    def __repr__(self) -> str:
        """Show what it is made of."""
        parts: Any = self.parts
        return f"InsertAndClose({parts[0].when!r}, close={self.close!r})"
