"""What is asked of which model, and how: the settings that results follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnlens.errors import InputError
from attnlens.models.modes import asked_words, check_template, mode_of

if TYPE_CHECKING:
    from attnlens.interventions.base import Intervention
    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt
    from attnlens.runs.dataset import Question


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """Which model is asked, and in what words."""

    mode: str
    model: str = "testbed"
    device: str = "auto"
    dtype: str = "auto"
    system: str | None = None
    template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int = 2048

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
class RecordingSettings(AskSettings):
    """How answers are generated, and which layers are recorded."""

    seed: int = 0
    temperature: float = 0.0
    layers: list[int] | None = None
    fps: float | None = None
    max_frames: int | None = None

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If a number is out of range, or as ``AskSettings.check``.
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
class RecoverySettings(AskSettings):
    """Which interventions are compared with the untouched answer."""

    interventions: tuple[str, ...]
    when: str = "<back>"
    positions: str = "fresh"
    detail: str = "layer"

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If an intervention, its picture or the trigger cannot be read, an intervention is given
            twice, or as ``AskSettings.check``.
        """
        from attnlens.models.images import open_image

        for name in self.pictures():
            open_image(name)
        names = [one.name for one in self.parsed()]
        for text, name in zip(self.interventions, names, strict=True):
            if names.count(name) > 1:
                raise InputError(f"--intervention {text} is given twice: give each of them once")
        super().check()

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
