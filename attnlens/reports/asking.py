"""What is asked of which model, in what words: the settings that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnlens.errors import InputError
from attnlens.files import check_writable
from attnlens.models.modes import asked_words, check_template, mode_of

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt
    from attnlens.reports.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The options that ``attnlens trend``, ``recover`` and ``dilution`` share."""

    mode: str
    model: str = "testbed"
    device: str = "auto"
    dtype: str = "auto"
    system: str | None = None
    template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int = 2048
    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)

    @property
    def words(self) -> str:
        """What is said around a question."""
        return asked_words(self.mode, self.template, self.system)

    def check(self) -> None:
        """Refuse what can be refused without loading anything.

        Raises
        ------
        InputError
            If the mode is unknown, the template has no place for a question, limits of pixels
            cannot hold, or the folder cannot be written.
        """
        mode_of(self.mode)
        if self.template is not None:
            check_template(self.template)
        for name in ("min_pixels", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: give a number of pixels of at least 1")
        least, most = self.min_pixels, self.max_pixels
        if least is not None and most is not None and least > most:
            raise InputError(
                f"--min_pixels {least} is more than --max_pixels {most}: give the smaller one as "
                "--min_pixels"
            )
        check_writable(Path(self.save_folder))

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

    def prompt(self, vlm: VLM, job: Job) -> Prompt:
        """Build the prompt of a question."""
        return vlm.prompt(
            job.image, job.question, self.mode, system=self.system, template=self.template
        )
