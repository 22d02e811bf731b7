"""Text that is forced into a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.interventions.base import Intervention
from attnlens.interventions.triggers import Trigger

if TYPE_CHECKING:
    from attnlens.vlm.prompt import Prompt


@dataclass(frozen=True)
class Inject(Intervention):
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

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return f"inject:{self.text.strip()}"

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        if not self.text:
            raise InputError("Inject(''): give the text to force in, such as '<back>'")

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids of the text's tokens."""
        return list(tokenizer(self.text, add_special_tokens=False)["input_ids"])
