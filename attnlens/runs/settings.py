"""What is asked of which model, and how: the settings that results follow from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnlens.errors import InputError
from attnlens.models.modes import MESSAGES, asked_words, check_template, mode_of

if TYPE_CHECKING:
    from attnlens.interventions.base import Intervention
    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt
    from attnlens.runs.dataset import Question


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Which model is asked, and in what words."""

    mode: str
    model: str = "testbed"
    device: str = "auto"
    dtype: str = "auto"
    system: str | None = None
    template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def words(self) -> str:
        """The text around a question."""
        return asked_words(self.mode, self.template, self.system)

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If the mode is unknown, the template has no place for a question, or the limits of
            pixels cannot hold.
        """
        from attnlens.models.images import check_pixel_limits

        mode_of(self.mode)
        if self.template is not None:
            check_template(self.template)
        check_pixel_limits(self.min_pixels, self.max_pixels)

    def load(self) -> VLM:
        """Load the model."""
        from attnlens.models.load import load

        return load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def prompt(self, vlm: VLM, question: Question) -> Prompt:
        """Build the prompt of a question."""
        return vlm.prompt(
            question.image, question.text, self.mode, system=self.system, template=self.template
        )


@dataclass(frozen=True, kw_only=True)
class AskSettings(PromptSettings):
    """What is asked, and how long an answer may be."""

    max_new_tokens: int = 2048


@dataclass(frozen=True, kw_only=True)
class KeptSettings:
    """What is recorded of an answer.

    ``map_heads`` are (layer, head) pairs, in order. ``visual_map`` is None where nobody says:
    videos then have it, which tells what moment is looked at, and images do not, since a file may
    hold a million answers.
    """

    layers: list[int] | None = None
    visual_map: bool | None = None
    map_heads: list[tuple[int, int]] | None = None

    def keeps_map(self, question: Question) -> bool:
        """Whether the map of the mean over heads is kept of one answer of many."""
        return question.is_video if self.visual_map is None else self.visual_map


@dataclass(frozen=True, kw_only=True)
class RecordingSettings(AskSettings, KeptSettings):
    """How answers are generated, and what is recorded."""

    seed: int = 0
    temperature: float = 0.0
    fps: float | None = None
    max_frames: int | None = None

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If a number is out of range, or as ``PromptSettings.check``.
        """
        from attnlens.models.videos import check_sampling

        check_sampling(self.fps, self.max_frames)
        if self.max_new_tokens < 1:
            raise InputError(f"--max_new_tokens {self.max_new_tokens}: give at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature}: give 0 (greedy) or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: give a number from 0 to 2**63 - 1")
        super().check()

    def prompt(self, vlm: VLM, question: Question) -> Prompt:
        """Build the prompt of a question."""
        if not question.is_video:
            return super().prompt(vlm, question)
        return vlm.prompt(
            None,
            question.text,
            self.mode,
            video=question.image,
            fps=self.fps,
            max_frames=self.max_frames,
            system=self.system,
            template=self.template,
        )


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(PromptSettings, KeptSettings):
    """How the question of a known answer was asked, and what is recorded.

    ``resized_first``, ``messages`` and ``prompt_text`` are ``resized_first``, ``messages`` and
    ``prompt`` of ``attnlens.runs.responses.Asked``. The last two have the mode ``messages``.
    """

    resized_first: bool = False
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt_text: str | None = None

    @property
    def words(self) -> str:
        """The text around the question, or that of the whole prompt."""
        if self.prompt_text is not None:
            return self.prompt_text
        if self.messages is None:
            return super().words
        from attnlens.models.chat import read_chat

        return "\n".join(read_chat(self._with_picture("")).texts)

    def load(self) -> VLM:
        """Load the model with its own limits of pixels: those of the answers may differ."""
        return PromptSettings.load(replace(self, min_pixels=None, max_pixels=None))

    def prompt(self, vlm: VLM, question: Question) -> Prompt:
        """Build the prompt that was answered."""
        from attnlens.models.images import open_image, open_resized
        from attnlens.models.prompt import encode_prompt

        limits = (self.min_pixels, self.max_pixels)
        image: Any = question.image
        if self.resized_first:
            image, info = open_resized(image, *limits)
            limits = (None, None)
        least, most = limits
        if self.prompt_text is not None:
            token = vlm.processor.image_token
            # engines may repeat it for each visual token
            text = re.sub(f"(?:{re.escape(token)})+", lambda _: token, self.prompt_text)
            opened = [open_image(image)]
            prompt = encode_prompt(vlm, text, opened, limits, mode=MESSAGES, question=question.text)
        elif self.messages is not None:
            messages = self._with_picture(image)
            prompt = vlm.prompt(messages, min_pixels=least, max_pixels=most)
        else:
            prompt = vlm.prompt(
                image,
                question.text,
                self.mode,
                system=self.system,
                template=self.template,
                min_pixels=least,
                max_pixels=most,
            )
        if self.resized_first:
            (shown,) = prompt.images
            prompt = replace(prompt, images=(info.in_tiles(shown.tiles),))
        return prompt

    def _with_picture(self, image: Any) -> list[dict[str, Any]]:
        """Return the messages with the picture in its place."""
        return [
            {**message, "content": _with_picture(message["content"], image)}
            for message in self.messages or ()
        ]


def _with_picture(content: Any, image: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part | {"image": image} if part["type"] == "image" else part for part in content]


@dataclass(frozen=True, kw_only=True)
class InterventionSettings:
    """What is done to answers, when, and at which positions visual tokens are inserted."""

    interventions: tuple[str, ...]
    when: str = "<back>"
    positions: str = "fresh"

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If an intervention, its picture or the trigger cannot be read, or an intervention is
            given twice.
        """
        from attnlens.models.images import open_image

        for name in self.pictures():
            open_image(name)
        names = [one.name for one in self.parsed()]
        for text, name in zip(self.interventions, names, strict=True):
            if names.count(name) > 1:
                raise InputError(f"--intervention {text} is given twice: give each of them once")

    def pictures(self) -> list[str]:
        """Return the files that interventions show in place of an image."""
        parts = [part for one in self.parsed() for part in one.parts]
        sources = (getattr(part, "source", None) for part in parts)
        return sorted({str(name) for name in sources if name not in (None, "blank", "text")})

    def parsed(self) -> list[Intervention]:
        """Read the interventions."""
        from attnlens.interventions.base import parse_intervention
        from attnlens.interventions.triggers import parse_trigger

        when = parse_trigger(self.when)
        return [parse_intervention(text, when, self.positions) for text in self.interventions]


@dataclass(frozen=True, kw_only=True)
class RecoverySettings(AskSettings, InterventionSettings):
    """Which interventions are compared with the untouched answer."""

    detail: str = "layer"

    def check(self) -> None:
        """Refuse what can be refused without loading anything; see both bases."""
        InterventionSettings.check(self)
        super().check()
