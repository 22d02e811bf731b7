"""The testbed: a small trained vision-language model and the generator of its scenes.

``attnlens.load("testbed")`` loads the model. The scenes are ours, so the truth is known: which
object each word of an answer speaks of, and which visual token it stands on.
"""

from __future__ import annotations

from attnlens.testbed.questions import KINDS, Question
from attnlens.testbed.respond import respond
from attnlens.testbed.samples import Sample, held_out_sample, make_sample, save_samples
from attnlens.testbed.scenes import Scene, SceneObject, random_scene
from attnlens.testbed.scoring import mark_response, score
from attnlens.testbed.tokenizer import load_tokenizer
from attnlens.testbed.truth import TokenTruth, token_truth

__all__ = [
    "KINDS",
    "Question",
    "Sample",
    "Scene",
    "SceneObject",
    "TokenTruth",
    "held_out_sample",
    "load_tokenizer",
    "make_sample",
    "mark_response",
    "random_scene",
    "respond",
    "save_samples",
    "score",
    "token_truth",
]
