"""From which rows visual keys are hidden, to find out where a verified fact is looked up."""

from __future__ import annotations

import numpy as np

from attnlens.testbed.forced import Hide
from attnlens.testbed.scenes import SIZES
from attnlens.testbed.truth import TokenTruth


def states_fact(token: TokenTruth) -> bool:
    """Whether a token states a size or a mark inside a verification."""
    return token.must_look and token.section == "verification"


def _rows(truth: list[TokenTruth], prompt: int, chosen: list[bool], visual: int) -> np.ndarray:
    """Rows whose *predicted* token is chosen see no visual token."""
    hidden = np.zeros((prompt + len(truth), visual), dtype=bool)
    hidden[prompt - 1 : -1][np.array(chosen, dtype=bool)] = True
    return hidden


def nothing(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide nothing."""
    return _rows(truth, prompt, [False] * len(truth), visual)


def fact_steps(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide the image at the very steps that state a fact."""
    return _rows(truth, prompt, [states_fact(t) for t in truth], visual)


def size_steps(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide the image at the steps that state a size."""
    return _rows(truth, prompt, [states_fact(t) and _is_size(t) for t in truth], visual)


def mark_steps(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide the image at the steps that state a mark, which often follow those of sizes."""
    return _rows(truth, prompt, [states_fact(t) and not _is_size(t) for t in truth], visual)


def _is_size(token: TokenTruth) -> bool:
    return token.text.strip() in SIZES


def own_token(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide, at the steps that state a fact, the visual token of the object that it is about."""
    hidden = np.zeros((prompt + len(truth), visual), dtype=bool)
    for step, token in enumerate(truth):
        if states_fact(token):
            hidden[prompt - 1 + step, list(token.visual_tokens)] = True
    return hidden


def other_tokens(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide, at the steps that state a fact, every visual token but that of the object."""
    hidden = fact_steps(truth, prompt, visual)
    return hidden & ~own_token(truth, prompt, visual)


def verification(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide the image throughout the verification."""
    return _rows(truth, prompt, [t.section == "verification" for t in truth], visual)


def before_verification(truth: list[TokenTruth], prompt: int, visual: int) -> np.ndarray:
    """Hide the image from every step of the answer that is not in the verification."""
    return _rows(truth, prompt, [t.section != "verification" for t in truth], visual)


HIDINGS: dict[str, Hide] = {
    "nothing": nothing,
    "at the steps that state a fact": fact_steps,
    "at the steps that state a size": size_steps,
    "at the steps that state a mark": mark_steps,
    "its object's visual token, at those steps": own_token,
    "all other visual tokens, at those steps": other_tokens,
    "throughout the verification": verification,
    "everywhere in the answer but there": before_verification,
}
"""What is hidden, by name."""
