"""The images of the prompt of one generation: features, slots and positions of their tokens."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch

from attnlens.vlm.family import Parts
from attnlens.vlm.features import image_features
from attnlens.vlm.prompt import Prompt


class PromptImages:
    """What insertions ask of a prompt's images.

    Parameters
    ----------
    model, family
        The model and its parts.
    prompt
        The prompt.
    """

    def __init__(self, model: Any, family: Parts, prompt: Prompt) -> None:
        self._model = model
        self._family = family
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
            inputs = self._prompt.inputs
            with torch.no_grad():
                self._features = image_features(
                    self._model, inputs["pixel_values"], inputs["image_grid_thw"]
                )
        counts = [rows * columns for rows, columns in self._prompt.grids]
        start = sum(counts[:image])
        return self._features[start : start + counts[image]]

    def slots(self, image: int) -> list[int]:
        """Slots of an image's visual keys in the prompt."""
        return np.flatnonzero(self._prompt.image_of_key == image).tolist()

    def positions(self, image: int) -> np.ndarray:
        """Rotary positions of an image's visual tokens in the prompt, int64 [3, tokens]."""
        inputs = self._prompt.inputs
        positions, _ = self._family.generator.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        return positions[:, 0, self.slots(image)].cpu().numpy()

    def checksum(self) -> int:
        """Return a number that another question or another picture would change."""
        pixels = self._prompt.inputs["pixel_values"].float().cpu().numpy().tobytes()
        return zlib.crc32(self._prompt.text.encode(), zlib.crc32(pixels))
