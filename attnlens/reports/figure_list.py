"""The figures of ``attnlens figures``: one small function each, from runs to figure and data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from attnlens import measures, plots
from attnlens.errors import InputError
from attnlens.plots.style import WIDTHS
from attnlens.recording.trace import Trace
from attnlens.reports.figure_inputs import VERIFICATIONS, FigureRuns
from attnlens.reports.figure_tables import (
    agreement_tables,
    change_table,
    dependence_table,
    head_table,
    layer_table,
    recovery_table,
    rise_table,
    share_table,
)

if TYPE_CHECKING:
    from attnlens.experiments.recovery import Recovery
    from attnlens.plots.figure import Figure

ROUTE_NAME = re.compile(r"route\W*(\d+(?:\.\d+)?)%?", re.IGNORECASE)
"""Names of ROUTE without a control: route:25, ROUTE 25%."""
BINS = {"before": 20, "inside": 10, "after": 4, "whole": 20}
"""Bins by section: about six steps of a testbed run in each."""


@dataclass(frozen=True)
class Drawn:
    """A figure, and what is written with it.

    Attributes
    ----------
    name
        Of its files.
    title
        What it shows, in one sentence.
    figure
        The figure.
    tables
        Its data, by the suffix of the file's name; the first one has none.
    samples
        What it is made of, with numbers.
    versions
        Of what made the runs.
    note
        What its own caption does not say.
    """

    name: str
    title: str
    figure: Figure
    tables: dict[str, pd.DataFrame]
    samples: str
    versions: str
    note: str = ""


def versions_of(traces: Iterable[Trace]) -> str:
    """Return the versions of attnlens, torch and transformers that traces were made with."""
    found = []
    for trace in traces:
        noted = trace.attrs.get("versions") or {}
        names = (n for n in ("attnlens", "torch", "transformers") if n in noted)
        found.append(", ".join(f"{name} {noted[name]}" for name in names))
    return either(found)


def either(texts: Iterable[str]) -> str:
    """Join different texts with "or", in order, without the empty one."""
    return " or ".join(sorted(set(texts) - {""}))


def count_runs(traces: Sequence[Trace], mode: str) -> str:
    """Describe how many runs of a mode there are, and how many of them had not ended."""
    count, cut_off = len(traces), sum(bool(trace.cut_off) for trace in traces)
    words = f"{count} run{'' if count == 1 else 's'} of mode {mode}"
    return f"{words} ({cut_off} cut off at the longest length)" if cut_off else words


def decay_and_refocus(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Mean over runs, mode against mode."""
    used = {m: runs.traces(m) for m in ("cot", *VERIFICATIONS) if m in runs.modes}
    if not used:
        mode = runs.preferred()
        used = {mode: runs.traces(mode)}
    if "back" in used:  # one verification in a figure
        used.pop("reflection", None)
    region = "reflection" if "reflection" in used else "back"
    found = {
        mode: measures.averages(listed, region=region, bins=BINS) for mode, listed in used.items()
    }
    tables = [one.table.assign(mode=mode) for mode, one in found.items()]
    lengths = [
        one.table["section"].map(one.lengths).rename("section_steps") for one in found.values()
    ]
    table = pd.concat([t.assign(section_steps=n) for t, n in zip(tables, lengths, strict=True)])
    table.insert(0, "mode", table.pop("mode"))
    yield Drawn(
        "01_decay_and_refocus",
        "Attention to the image over the answer: mean over runs, "
        + " against ".join(f"mode {mode}" for mode in found),
        plots.averages(found, width=width),
        {"": table},
        ", ".join(count_runs(listed, mode) for mode, listed in used.items()),
        versions_of(trace for listed in used.values() for trace in listed),
    )


def _one_run(runs: FigureRuns) -> tuple[Trace, str]:
    """Return the first run that verifies, or else the first run, with words for it."""
    try:
        _, found = runs.verified()
    except InputError:
        found = runs.modes[runs.preferred("cot")]
    trace = found[0].trace
    return trace, f"the first run, of mode {trace.attrs.get('mode') or 'no mode'}"


def one_run(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Draw one run with its tokens, in as many rows as it needs; without them in one column."""
    trace, words = _one_run(runs)
    narrow = width == "one-column"
    figure = plots.trend(trace, width=width) if narrow else plots.tokens(trace)
    yield Drawn(
        "02_one_run",
        "Attention of one run to the image, the query text and the generated text"
        + ("" if narrow else ", token by token"),
        figure,
        {"": share_table(trace)},
        words,
        versions_of([trace]),
        "Shaded: regions of the answer.",
    )


def layers_and_heads(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """One run by layer and by head."""
    trace, words = _one_run(runs)
    yield Drawn(
        "03_layers_and_heads",
        "Attention of one run to the image, by layer and by head",
        plots.layers(trace, width=width),
        {"": layer_table(trace), "heads": head_table(trace)},
        words,
        versions_of([trace]),
        "First panel: by layer, mean over heads. Second panel, where the definition has values for "
        "single heads: by head, mean over layers. Strips: regions of the answer.",
    )


def overlays(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Where the model looks when it verifies."""
    from attnlens.reports.figure_overlays import choose

    region, found = runs.verified()
    mapped = [one for one in found if one.has_map]
    if not mapped:
        raise InputError("no run with a verification has a visual map: record with visual_map=True")
    chosen = choose(mapped, region)
    for letter, look in zip("abc", chosen, strict=False):
        yield Drawn(
            f"04{letter}_overlay",
            look.title,
            look.draw(WIDTHS["one-column"]),
            {"": look.table()},
            look.samples,
            versions_of([look.trace]),
            look.note,
        )


def recovery(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Compare interventions with their controls."""
    if runs.recovery is None:
        raise InputError(
            "there is no recovery.zarr (Recovery.save of what attnlens.recover returns)"
        )
    yield Drawn(
        "05_recovery",
        "What looking again brings back of the attention to the image, with controls",
        plots.recovery(runs.recovery, width=width),
        {"": recovery_table(runs.recovery), "steps": rise_table(runs.recovery)},
        *_compared(runs.recovery),
        "First panel: mean rise by step since the trigger, inserted tokens not counted. Second "
        "panel: mean rise over all steps from the trigger on.",
    )


def routes(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Compare percentages of ROUTE."""
    if runs.routes is None:
        raise InputError(
            "there is no routes.zarr (Recovery.save, of Route with several percentages)"
        )
    percents = {
        name: float(match[1])
        for name in runs.routes.interventions
        if (match := ROUTE_NAME.fullmatch(name))
    }
    if not percents:
        raise InputError(
            f"routes.zarr has {', '.join(runs.routes.interventions)}: name ROUTE as in 'route:25'"
        )
    table = recovery_table(runs.routes)
    table = table[table["intervention"].isin(list(percents))]
    table.insert(1, "percent", table["intervention"].map(percents))
    yield Drawn(
        "06_routes",
        "ROUTE by the percentage of visual tokens inserted again: attention, answers and cost",
        plots.routes(runs.routes, percents, width=width),
        {"": table},
        *_compared(runs.routes),
    )


def _compared(result: Recovery) -> tuple[str, str]:
    """Describe what a recovery was measured on, and with which versions."""
    count = result.data.sizes["sample"]
    words = f"{count} prompt{'' if count == 1 else 's'}, each untouched and under each intervention"
    return words, str(result.data.attrs.get("versions", ""))


def definitions(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """All definitions on the same runs."""
    mode = runs.preferred(*VERIFICATIONS)
    traces = runs.traces(mode)
    found = measures.agreement(traces)
    curves, correlations = agreement_tables(found)
    yield Drawn(
        "08_definitions",
        "Definitions of attention to the image, side by side on the same runs",
        plots.definitions(found, width=width),
        {"": curves, "correlations": correlations},
        count_runs(traces, mode),
        versions_of(traces),
    )


def dependence(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Attention against use."""
    if not runs.dependence:
        raise InputError("there is no dependence/*.zarr (what attnlens.dependence returns)")
    count = len(runs.dependence)
    yield Drawn(
        "09_dependence",
        "Attention to the image against its use: what predictions lose without it",
        plots.dependence(runs.dependence, width=width),
        {"": dependence_table(runs.dependence)},
        f"{count} run{'' if count == 1 else 's'}",
        either(str(one.attrs.get("versions", "")) for one in runs.dependence),
    )


def dilution(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Check the theorem, and split the change into counts and preference."""
    mode = runs.preferred("cot")
    traces = runs.traces(mode)
    found = measures.dilution(traces)
    yield Drawn(
        "07_dilution",
        "Is the decay of attention to the image the growth of the number of keys?",
        plots.dilution(found, width=width),
        {"": change_table(found), "steps": found.curves},
        count_runs(traces, mode),
        versions_of(traces),
        " ".join(found.verdict()),
    )


def long_answers(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Check the theorem where the number of keys grows much."""
    if not runs.long:
        raise InputError("there is no long/*.zarr (traces of long answers)")
    found = measures.dilution(runs.long)
    yield Drawn(
        "10_long_answers",
        "Attention to the image over long answers",
        plots.dilution(found, width=width),
        {"": change_table(found), "steps": found.curves},
        f"{len(runs.long)} long answers (of the testbed: true ones, their tokens forced) of "
        f"{min(found.steps)} to {max(found.steps)} steps",
        versions_of(runs.long),
        " ".join(found.verdict()),
    )


def insertion(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Theorem 3.2: more visual keys, on the same forced answers."""
    if not runs.twins:
        raise InputError("there is no *_twins/ (forced twins with visual tokens inserted)")
    versions = []

    def groups() -> Iterator[dict[str, Trace]]:
        for paths in runs.twins:
            group = {name: Trace.load(path) for name, path in paths.items()}
            versions.append(versions_of([group["nothing"]]))
            yield group

    found = measures.insertion(groups())
    yield Drawn(
        "11_insertion",
        "Does inserting visual tokens bring the attention that the theorem promises?",
        plots.insertion(found, width=width),
        {"": found.table},
        f"{len(runs.twins)} prompts",
        either(versions),
        " ".join(found.verdict()),
    )


def information(runs: FigureRuns, width: str) -> Iterator[Drawn]:
    """Bounds of the mutual information of answer and image."""
    if not runs.answers:
        raise InputError("there is no *_answers/ (dependence of sampled answers)")
    found = measures.mutual_information(runs.answers)
    yield Drawn(
        "12_information",
        "What an answer owes to the image, part by part, with the shape of the theorem's bound",
        plots.information(found, width=width),
        {"": found.curve},
        f"{found.answers} sampled answers to {found.prompts} prompts",
        either(str(one.attrs.get("versions", "")) for group in runs.answers for one in group),
        " ".join(found.verdict()),
    )


FIGURES: dict[str, Callable[[FigureRuns, str], Iterator[Drawn]]] = {
    "01_decay_and_refocus": decay_and_refocus,
    "02_one_run": one_run,
    "03_layers_and_heads": layers_and_heads,
    "04_overlays": overlays,
    "05_recovery": recovery,
    "06_routes": routes,
    "07_dilution": dilution,
    "08_definitions": definitions,
    "09_dependence": dependence,
    "10_long_answers": long_answers,
    "11_insertion": insertion,
    "12_information": information,
}
"""All figures; what cannot be drawn raises ``InputError`` with the reason."""

NAMES = [
    name
    for figure in FIGURES
    for name in (
        [f"04{letter}_overlay" for letter in "abc"] if figure == "04_overlays" else [figure]
    )
]
"""Names of all files, without suffix."""
