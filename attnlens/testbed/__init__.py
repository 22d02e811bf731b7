"""The testbed: a small trained vision-language model and the generator of its scenes.

``attnlens.load("testbed")`` loads the model. Since the scenes are generated, the truth is known:
which object each word of an answer is about, and which visual token shows it. ``small_vlm`` builds
a model of any other family, with random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnlens.testbed.model.tokenizer import load_tokenizer
from attnlens.testbed.studies.scoring import mark_response, respond, score
from attnlens.testbed.world.films import Film, random_film
from attnlens.testbed.world.pairs import ScenePair, held_out_pair
from attnlens.testbed.world.questions import KINDS, Question
from attnlens.testbed.world.samples import (
    Sample,
    TokenTruth,
    held_out_sample,
    make_sample,
    save_samples,
    token_truth,
)
from attnlens.testbed.world.scenes import Scene, SceneObject, random_scene

if TYPE_CHECKING:
    from attnlens.models.small import small_vlm

__all__ = [
    "KINDS",
    "Film",
    "Question",
    "Sample",
    "Scene",
    "SceneObject",
    "ScenePair",
    "TokenTruth",
    "held_out_pair",
    "held_out_sample",
    "load_tokenizer",
    "make_sample",
    "mark_response",
    "random_film",
    "random_scene",
    "respond",
    "save_samples",
    "score",
    "small_vlm",
    "token_truth",
]


def __getattr__(name: str) -> Any:
    if name == "small_vlm":  # brings torch, which scenes do without
        from attnlens.models.small import small_vlm

        return small_vlm
    raise AttributeError(f"module 'attnlens.testbed' has no attribute {name!r}")
