"""Text that is forced into a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention, Place, Words, check_visual, is_whole
from attnlens.interventions.triggers import Trigger

if TYPE_CHECKING:
    from attnlens.models.prompt import Prompt


class Forcing(Intervention):
    """Decides the response's next tokens, whatever the model would say."""

    follows = True

    def act(self, place: Place) -> None:
        """See ``Intervention``."""
        place.force(self.forced_ids(place.generation.vlm.tokenizer))


@dataclass(frozen=True)
class Inject(Forcing):
    """Force text into the response, such as ``<back>`` or "Let me look at the image again.".

    The text's tokens are the response's next ones, whatever the model would say; nothing of the
    image is inserted. Alone it is the text-only reflection.

    Parameters
    ----------
    text
        What is forced.
    when
        The trigger; the text follows the token that makes it fire.
    """

    text: str
    when: Trigger

    forms = ("inject:TEXT",)

    @classmethod
    def from_words(cls, words: Words) -> Inject | None:
        """See ``Intervention``."""
        return cls(words.value, words.when) if words.name == "inject" and words.value else None

    @classmethod
    def takes_whole(cls, text: str) -> bool:
        """See ``Intervention``."""
        return text.startswith("inject:")

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"inject:{self.text.strip()}"

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        if not self.text:
            raise InputError("Inject(''): give the text to force in, such as '<back>'")
        check_visual("a forced text", prompt)

    def forced_ids(self, tokenizer: Any) -> list[int]:
        """See ``Intervention``."""
        return list(tokenizer(self.text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class ForceTokens(Forcing):
    """Force a continuation by its token ids (teacher forcing).

    Parameters
    ----------
    ids
        The tokens, in order.
    when
        The trigger.
    """

    ids: tuple[int, ...]
    when: Trigger

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"force:{len(self.ids)}"

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        if not self.ids:
            raise InputError("ForceTokens(()): give at least one token id")
        if not all(is_whole(i) and i >= 0 for i in self.ids):
            raise InputError(f"ForceTokens({self.ids[:5]!r}...): give ids, whole numbers from 0 on")

    def forced_ids(self, tokenizer: Any) -> list[int]:
        """See ``Intervention``."""
        return [int(i) for i in self.ids]
