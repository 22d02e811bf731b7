"""The figures of ``attnlens figures`` that check the theorems of Qwen-LookAgain."""

from __future__ import annotations

from collections.abc import Iterator

from attnlens import measures, plots
from attnlens.errors import InputError
from attnlens.recording.trace import Trace
from attnlens.reports.figure_drawn import Drawn, count_runs, either, versions_of
from attnlens.reports.figure_inputs import Runs
from attnlens.reports.figure_tables import change_table


def dilution(runs: Runs, width: str) -> Iterator[Drawn]:
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


def long_answers(runs: Runs, width: str) -> Iterator[Drawn]:
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


def insertion(runs: Runs, width: str) -> Iterator[Drawn]:
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


def information(runs: Runs, width: str) -> Iterator[Drawn]:
    """Bounds of the mutual information of answer and image."""
    if not runs.answers:
        raise InputError("there is no *_answers/ (dependence of sampled answers)")
    found = measures.mutual_information(runs.answers)
    yield Drawn(
        "12_information",
        "What an answer owes to the image, part by part, beside the shape of the theorem's bound",
        plots.information(found, width=width),
        {"": found.curve},
        f"{found.answers} sampled answers to {found.prompts} prompts",
        either(str(one.attrs.get("versions", "")) for group in runs.answers for one in group),
        " ".join(found.verdict()),
    )
