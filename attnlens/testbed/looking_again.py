"""Every way of looking again, and its controls, on held-out scenes with known truth.

The testbed's own counterpart of Tables 4 to 6 of Qwen-LookAgain (arXiv 2505.23558): what each way
brings back in visual attention, what it does to answers and verified facts, and what it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.experiments.recover import recover
from attnlens.interventions import (
    At,
    Boost,
    Copy,
    Inject,
    InsertAndClose,
    Intervention,
    Knockout,
    Route,
)
from attnlens.measures.results import plain_rows
from attnlens.measures.statistics import with_interval
from attnlens.testbed.respond import picture
from attnlens.testbed.samples import Sample, held_out_sample
from attnlens.testbed.scoring import CHANCE, mark_response

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery
    from attnlens.models.load import VLM

TAGS = {"back": ("<back>", " </back>"), "reflection": ("<REFLECTION>", " </REFLECTION>")}
"""Tags around a verification, by mode."""

REASONING = At(" Total", times=1) | At(" Count", times=1)
"""Where the reasoning begins: with the total, or with the first of several counts."""

DEFINITIONS = ("mass", "look-back")


def check_request(mode: str, scenes: int, least: int) -> None:
    """Refuse a mode without a verification, and too few scenes."""
    if mode not in TAGS or scenes < least:
        raise InputError(
            f"{scenes} scenes in mode {mode!r}: give at least {least}, in {' or '.join(TAGS)}"
        )


def ways(mode: str, other: Any) -> dict[str, Intervention]:
    """Return the interventions that are compared, with their controls, by name.

    Parameters
    ----------
    mode
        ``back`` or ``reflection``; they act at the tag that opens the verification.
    other
        Another scene's picture.
    """
    opening, closing = TAGS[mode]
    at = At(opening, times=1)
    return {
        "COPY": Copy(when=at),
        **{f"ROUTE {p}%": Route(when=at, percent=p) for p in (25, 50, 75, 100)},
        "ROUTE 50%, random": Route(when=at, percent=50, select="random"),
        "ROUTE 50%, bottom": Route(when=at, percent=50, select="bottom"),
        "COPY of another scene": Copy(when=at, source=other),
        "COPY of a blank image": Copy(when=at, source="blank"),
        "text of the same length": Copy(when=at, source="text"),
        "text-only": Inject(" I look again.", when=at),
        "vision-only": InsertAndClose(when=at, close=closing),
        **{f"boost by {b:g}": Boost(when=at, log_odds=b) for b in (0.5, 1.0, 2.0)},
        "PAI, alpha 0.5": Boost(when=at, alpha=0.5),
        "knock-out from the verification on": Knockout(when=at),
        "knock-out in the reasoning": Knockout(when=REASONING, until=at),
    }


def looking_again(vlm: VLM, scenes: int, seed: int = 0, *, mode: str = "back") -> dict[str, Any]:
    """Measure all ``ways`` over held-out scenes.

    Parameters
    ----------
    vlm
        A testbed model.
    scenes
        Number of held-out scenes, of all kinds of question.
    seed
        Which ones.
    mode
        ``back`` or ``reflection``.

    Returns
    -------
    dict
        ``rows``: for ``untouched`` and each way, ``answer``, ``verified``, ``size``, ``mark`` and
        ``described`` (facts right: mean over the ``count`` scenes that have such facts, with 95%
        intervals over scenes), and, by definition, the columns of ``Recovery.table`` with
        inserted tokens counted as image and not (``seconds_ratio`` over the scenes where the free
        run was run, see ``reuse`` of ``attnlens.recover``). ``chance``: of sizes, marks and both at
        random.

    Raises
    ------
    InputError
        If the mode has no verification, or fewer than two scenes are asked for.
    """
    check_request(mode, scenes, 2)
    samples = [held_out_sample(seed, i, mode) for i in range(scenes)]
    prompts = [vlm.prompt(s.scene.draw(), s.question.text, mode) for s in samples]
    others = [picture(s, "other") for s in samples]
    lengths = vlm.tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    result = recover(
        vlm,
        prompts,
        lambda i: ways(mode, others[i]),
        max(map(len, lengths)) + 50,
        expected=[s.question.answer for s in samples],
        detail="step",
        reuse=True,
    )
    return {
        "mode": mode,
        "scenes": scenes,
        "seed": seed,
        "chance": {**CHANCE, "verified": float(np.mean(list(CHANCE.values())))},
        "rows": _rows(result, samples),
    }


def _rows(result: Recovery, samples: list[Sample]) -> dict[str, dict[str, Any]]:
    tables = {
        (definition, counted): {
            row["intervention"]: row
            for row in plain_rows(result.table(definition, include_copied=counted))
        }
        for definition in DEFINITIONS
        for counted in (False, True)
    }
    rows: dict[str, dict[str, Any]] = {}
    for run in result.data["run"].values.tolist():
        texts = result.data["text"].sel(run=run).values.tolist()
        rows[run] = _marks(samples, texts)
        for (definition, counted), table in tables.items():
            if run in table:
                name = f"{definition}, with copied" if counted else definition
                rows[run][name] = table[run]
    return rows


def _marks(samples: list[Sample], texts: list[str]) -> dict[str, dict[str, Any]]:
    """Score responses: means over scenes with intervals; a scene without facts is left out."""
    values: dict[str, list[float]] = {
        name: [] for name in ("answer", "described", "size", "mark", "verified")
    }
    for sample, text in zip(samples, texts, strict=True):
        marks = mark_response(sample, text)
        values["answer"].append(float(marks.answer))
        both = (marks.size[0] + marks.mark[0], marks.size[1] + marks.mark[1])
        pairs = {"described": marks.described, "size": marks.size, "mark": marks.mark}
        for name, (right, due) in (pairs | {"verified": both}).items():
            if due:
                values[name].append(right / due)
    return {name: with_interval(found, proportion=True) for name, found in values.items()}
