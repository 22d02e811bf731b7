"""All interventions, with their controls, on held-out scenes with known truth.

The testbed's counterpart of Tables 4 to 6 of Qwen-LookAgain (arXiv 2505.23558): how much visual
attention each way recovers, what it does to answers and verified facts, and what it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from attnlens.testbed.studies.scoring import CHANCE, CHANCE_OF_BOTH, mark_response, prompt_of
from attnlens.testbed.world.samples import Sample, held_out_sample, picture

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery
    from attnlens.models.load import VLM

TAGS = {"back": ("<back>", " </back>"), "reflection": ("<REFLECTION>", " </REFLECTION>")}
"""Tags around a verification, by mode."""

REASONING = At(" Total", times=1) | At(" Count", times=1)
"""The beginning of the reasoning: the total, or the first of several counts."""

DEFINITIONS = ("mass", "look-back")


def check_request(mode: str, scenes: int, least: int) -> None:
    """Refuse a mode without a verification, and fewer scenes than ``least``."""
    if mode not in TAGS or scenes < least:
        raise InputError(
            f"{scenes} scenes in mode {mode!r}: give at least {least}, in {' or '.join(TAGS)}"
        )


def compared_interventions(mode: str, other: Any) -> dict[str, Intervention]:
    """Return the interventions and their controls, by name; ``other`` is another scene's picture.

    They act at the tag that opens the verification of the mode.
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
    """Measure all ``compared_interventions`` over held-out scenes.

    Parameters
    ----------
    vlm, scenes, seed
        A testbed model; how many and which held-out scenes.
    mode
        ``back`` or ``reflection``.

    Returns
    -------
    dict
        ``rows``: for ``untouched`` and each intervention, ``answer``, ``verified``, ``size``,
        ``mark`` and ``described`` (fraction right: mean over the ``count`` scenes that have such
        facts, with 95% intervals over scenes), and, by definition, the columns of
        ``Recovery.table`` with inserted tokens counted as image and not (``seconds_ratio`` over the
        scenes with a separate free run, see ``reuse`` of ``attnlens.recover``). ``chance``: of
        guessing sizes, marks and both.

    Raises
    ------
    InputError
        If the mode has no verification, or there are fewer than two scenes.
    """
    check_request(mode, scenes, 2)
    samples = [held_out_sample(seed, i, mode) for i in range(scenes)]
    prompts = [prompt_of(vlm, sample) for sample in samples]
    others = [picture(s, "other") for s in samples]
    lengths = vlm.tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    result = recover(
        vlm,
        prompts,
        lambda i: compared_interventions(mode, others[i]),
        max(map(len, lengths)) + 50,
        expected=[s.question.answer for s in samples],
        detail="step",
        reuse=True,
    )
    return {
        "mode": mode,
        "scenes": scenes,
        "seed": seed,
        "chance": {**CHANCE, "verified": CHANCE_OF_BOTH},
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
    """Score responses: means over the scenes with such facts, with intervals."""
    marks = [mark_response(sample, text) for sample, text in zip(samples, texts, strict=True)]
    counted: dict[str, list[tuple[int, int]]] = {
        "answer": [(m.answer, 1) for m in marks],
        "described": [m.described for m in marks],
        "size": [m.size for m in marks],
        "mark": [m.mark for m in marks],
        "verified": [m.facts for m in marks],
    }
    return {
        name: with_interval([right / due for right, due in pairs if due], proportion=True)
        for name, pairs in counted.items()
    }


def table_text(table: dict[str, Any]) -> str:
    """Write what ``looking_again`` returns as a table with a line per intervention."""
    names = ("with copied", "visual", "KL (nats)", "answer", "verified", "inserted")
    lines = [
        f"{table['mode']}: {table['scenes']} held-out scenes; rise of visual mass over the "
        "untouched twin, inserted tokens counted as image and not; (n): mean over n scenes, in "
        "which it acted or which have such facts",
        f"{'':36}" + "".join(f"{name:>13}" for name in names),
    ]
    scenes = table["scenes"]
    for run, row in table["rows"].items():
        own, both = row.get("mass", {}), row.get("mass, with copied", {})
        cells = [
            mean_text(both.get("rise"), ".3f", both.get("rise_samples"), scenes),
            mean_text(own.get("rise"), ".3f", own.get("rise_samples"), scenes),
            mean_text(own.get("kl"), ".3f", own.get("kl_samples"), scenes),
            mean_text(row["answer"]["mean"], ".1%", row["answer"]["count"], scenes),
            mean_text(row["verified"]["mean"], ".1%", row["verified"]["count"], scenes),
            mean_text(own.get("inserted"), ".0f", own.get("inserted_samples"), scenes),
        ]
        lines.append(f"{run:36}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def mean_text(value: float | None, layout: str, count: int | None, scenes: int) -> str:
    """Write a mean, and how many scenes it is over if those are not all scenes."""
    if value is None:
        return "-"
    return format(value, layout) + (f" ({count})" if count != scenes else "")
