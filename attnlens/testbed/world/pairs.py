"""Two scenes that differ in one object, and the step of the answer that states the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.testbed.world.answers import write_answer
from attnlens.testbed.world.questions import KINDS
from attnlens.testbed.world.samples import HELD_OUT, Sample, make_sample, token_truth
from attnlens.testbed.world.scenes import MARKS, SIZES

ATTRIBUTES = {"mark": MARKS, "size": tuple(SIZES)}
"""What the object may differ in: what only a verification states."""


@dataclass(frozen=True)
class ScenePair:
    """Two samples that differ in one attribute of one object.

    Attributes
    ----------
    clean, corrupted
        The samples, with the same question and the same answer up to the difference.
    target
        Index of the object, in reading order.
    attribute
        ``mark`` or ``size``.
    """

    clean: Sample
    corrupted: Sample
    target: int
    attribute: str

    @property
    def visual_token(self) -> int:
        """The visual token that shows the object."""
        scene = self.clean.scene
        return scene.visual_token(scene.objects[self.target])

    def step(self, texts: Sequence[str]) -> int:
        """Return the first step whose token differs between the answers.

        Parameters
        ----------
        texts
            Texts of the tokens of the clean sample's answer.

        Raises
        ------
        InputError
            If no token of the verification states the attribute.
        """
        values = ATTRIBUTES[self.attribute]
        for step, token in enumerate(token_truth(self.clean, texts)):
            stated = token.states_fact and token.text.strip() in values
            if stated and token.speaks_of == self.target:
                return step
        raise InputError(f"the answer does not state the {self.attribute} of object {self.target}")


def held_out_pair(seed: int, index: int, attribute: str = "mark", mode: str = "back") -> ScenePair:
    """Draw a pair that training has never seen.

    Parameters
    ----------
    seed, index
        Which one.
    attribute
        What the object differs in: ``mark`` or ``size``.
    mode
        ``back`` or ``reflection``.

    Raises
    ------
    InputError
        If the attribute is unknown, or the seed is out of range.
    """
    if attribute not in ATTRIBUTES:
        raise InputError(f"attribute={attribute!r}: use one of {', '.join(ATTRIBUTES)}")
    if not 0 <= seed < 2**32 - HELD_OUT:  # NumPy would read a larger one as two numbers
        raise InputError(f"seed {seed} of held-out pairs: give 0 to {2**32 - HELD_OUT - 1}")
    rng = np.random.default_rng((HELD_OUT + seed, index, 1))
    kinds = [kind for kind in KINDS if kind != "attribute"]  # its answer would differ, too
    sample = make_sample(rng, mode, kind=str(rng.choice(kinds)), objects=int(rng.integers(2, 9)))
    scene = sample.scene
    target = int(rng.integers(len(scene.objects)))
    one = scene.objects[target]
    others = [v for v in ATTRIBUTES[attribute] if v != getattr(one, attribute)]
    value = str(rng.choice(others))
    radius = float(rng.uniform(*SIZES[value])) if attribute == "size" else one.radius
    new: dict[str, Any] = {attribute: value, "radius": radius}
    changed = replace(one, **new)
    objects = tuple(changed if o is one else o for o in scene.objects)
    other_scene = replace(scene, objects=objects)
    parts = tuple(write_answer(other_scene, sample.question, sample.mode))
    return ScenePair(sample, replace(sample, scene=other_scene, parts=parts), target, attribute)
