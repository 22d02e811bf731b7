"""The images of the prompt of one generation: features, slots and positions of their tokens."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from attnlens.models.family import Parts
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt


class PromptImages:
    """What insertions ask of a prompt's images.

    Parameters
    ----------
    vlm, parts
        The model and its parts.
    prompt
        The prompt.
    """

    def __init__(self, vlm: VLM, parts: Parts, prompt: Prompt) -> None:
        self._vlm = vlm
        self._parts = parts
        self._prompt = prompt
        self._features: torch.Tensor | None = None

    def keep(self, features: torch.Tensor) -> None:
        """Keep the vision features that the generation has computed, of all images in a row."""
        if self._features is None:
            self._features = features

    def clear(self) -> None:
        """Let the features go."""
        self._features = None

    def features(self, image: int) -> torch.Tensor:
        """Vision features of an image, [visual tokens, width]; computed once."""
        if self._features is None:
            vlm = self._vlm
            with torch.no_grad():
                self._features = vlm.family.image_features(vlm.model, self._prompt.inputs)
        counts = [rows * columns for rows, columns in self._prompt.grids]
        start = sum(counts[:image])
        return self._features[start : start + counts[image]]

    def slots(self, image: int) -> list[int]:
        """Slots of an image's visual keys in the prompt."""
        return np.flatnonzero(self._prompt.image_of_key == image).tolist()

    def positions(self, image: int) -> np.ndarray:
        """Rotary positions of an image's visual tokens in the prompt, int64 [axes, tokens]."""
        positions = self._vlm.family.rotary_positions(self._parts.generator, self._prompt.inputs)
        return positions[:, 0, self.slots(image)].cpu().numpy()

    def checksum(self) -> int:
        """Return a number that another question or another picture would change."""
        pixels = self._vlm.family.pixels(self._prompt.inputs).float().cpu().numpy().tobytes()
        return zlib.crc32(self._prompt.text.encode(), zlib.crc32(pixels))
