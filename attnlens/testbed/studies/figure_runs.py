"""Runs of the testbed that ``attnlens figures`` draws.

Any model can fill a folder of runs of this layout (``attnlens figures --traces DIR``)::

    DIR/
      <mode>/0000.zarr     Trace.save of an untouched run, recorded with visual_map=True for the
                           overlays. Any folder name will do: the trace knows its mode
      <mode>/0000.png      the image, if the file that the trace names is gone
      <mode>/0000.json     the truth of the answer, if it is known: Sample.truth(tokens)
      long/0000.zarr       Trace.save of long answers, in which the number of keys grows a lot
      cot_twins/0000/      traces of one answer, forced without and with more and more inserted
                           visual tokens: nothing.zarr, ROUTE 25%.zarr, ... (of any mode; as in the
                           dilution_runs of attnlens dilution --insertion)
      cot_answers/0000/    results of attnlens.dependence for answers sampled for one question:
                           0.zarr, 1.zarr, ... (of any mode; as from attnlens dilution --samples)
      dependence/0000.zarr a result of attnlens.dependence, saved with
                           attnlens.experiments.dependence.save_dependence(data, path)
      recovery.zarr        Recovery.save of a result of attnlens.recover, or, if there is none,
                           NAME_recovery/recovery.zarr, as from attnlens recover
      routes.zarr          the same for Route(percent=...) with several percentages, named as
                           attnlens names them (route:25) or as here (ROUTE 25%)

Figures whose runs are missing are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens._version import versions
from attnlens.errors import InputError
from attnlens.experiments.dependence import dependence, sampled_dependence, save_dependence
from attnlens.experiments.force import force, twins
from attnlens.experiments.recover import recover
from attnlens.experiments.run import run
from attnlens.files import write_folder
from attnlens.interventions import At, Copy, Inject, Intervention, Route
from attnlens.progress import progress
from attnlens.recording.trace import Trace
from attnlens.testbed.studies.scoring import prompt_of
from attnlens.testbed.world.samples import Sample, held_out_sample, save_samples

if TYPE_CHECKING:
    from attnlens.models.load import VLM

MODES = ("cot", "back")
MAX_NEW_TOKENS = 700
"""Longer than any true answer."""
MOST_DEPENDENCE = 10
"""Largest number of runs whose dependence on the image is measured."""
LONG: dict[str, Any] = {"steps": 60, "counts": 8, "grid": "small"}
"""Options of a long answer: 1,250 steps, over which the keys grow more than fivefold."""
MOST_ANSWERS = 20
"""Largest number of long answers, of answers forced with insertions, of questions sampled for."""
SAMPLED = 2
"""Sampled answers per question."""
OTHERS = 8
"""Other images that each sampled answer is measured against."""
PERCENTS = (12.5, 25, 50, 75, 100)
"""Percentages of ROUTE."""


def check_scenes(scenes: int, seed: int) -> None:
    """Refuse fewer than two scenes, and a seed out of range."""
    if scenes < 2:
        raise InputError(f"{scenes} scenes have no interval: give at least 2")
    held_out_sample(seed, 0, MODES[0])


def recovery_interventions() -> dict[str, Intervention]:
    """Return COPY and ROUTE with their controls, by name, acting at the first ``<back>``."""
    at = At("<back>", times=1)
    return {
        "COPY": Copy(when=at),
        "ROUTE 50%": Route(when=at, percent=50),
        "ROUTE 50%, random": Route(when=at, percent=50, select="random"),
        "ROUTE 50%, bottom": Route(when=at, percent=50, select="bottom"),
        "COPY of a blank image": Copy(when=at, source="blank"),
        "text-only": Inject(" I look again.", when=at),
    }


def route_interventions() -> dict[str, Intervention]:
    """Return ROUTE with several percentages, by name, acting at the first ``<back>``."""
    at = At("<back>", times=1)
    return {f"ROUTE {p:g}%": Route(when=at, percent=p) for p in PERCENTS}


def make_runs(vlm: VLM, folder: Path, scenes: int, seed: int = 0) -> None:
    """Run a testbed model on held-out scenes and write a folder of runs, all or nothing.

    Parameters
    ----------
    vlm, folder
        A testbed model, and a folder that is empty or does not exist.
    scenes, seed
        How many held-out scenes, at least 2, and which. They are the same in each mode.

    Raises
    ------
    InputError
        If there are too few scenes, the seed is out of range, or the folder is not empty.
    """
    check_scenes(scenes, seed)
    samples = {mode: [held_out_sample(seed, i, mode) for i in range(scenes)] for mode in MODES}
    with write_folder(folder) as temporary:
        for mode in MODES:
            save_samples(samples[mode], temporary / mode, vlm.tokenizer)
        _record(vlm, samples, temporary)
        _long(vlm, min(scenes, MOST_ANSWERS), seed, temporary)
        _insert(vlm, samples["cot"][:MOST_ANSWERS], temporary)
        _sample(vlm, samples["cot"], seed, temporary)
        _compare(vlm, samples["back"], temporary)


def _record(vlm: VLM, samples: dict[str, list[Sample]], folder: Path) -> None:
    listed = [(mode, i, one) for mode in MODES for i, one in enumerate(samples[mode])]
    for mode, i, sample in progress(listed, description="runs"):
        prompt = prompt_of(vlm, sample)
        trace = run(vlm, prompt, MAX_NEW_TOKENS, visual_map=True, do_sample=False)
        trace.save(folder / mode / f"{i:04d}.zarr")
        if mode == "back" and i < MOST_DEPENDENCE:
            data = dependence(vlm, trace, prompt=prompt)
            data.attrs["versions"] = _versions_text()
            save_dependence(data, folder / "dependence" / f"{i:04d}.zarr")


def _long(vlm: VLM, scenes: int, seed: int, folder: Path) -> None:
    """Record true answers to long questions, forced, since the model's own answers go astray."""
    for i in progress(range(scenes), description="long answers"):
        sample = held_out_sample(seed, i, "cot", **LONG)
        ids = vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        trace = force(vlm, prompt_of(vlm, sample), ids, visual_map=False)
        trace.save(folder / "long" / f"{i:04d}.zarr")


def _insert(vlm: VLM, samples: list[Sample], folder: Path) -> None:
    for i, sample in enumerate(progress(samples, description="insertions")):
        trace = Trace.load(folder / "cot" / f"{i:04d}.zarr")
        for name, twin in twins(vlm, prompt_of(vlm, sample), trace).items():
            twin.save(folder / "cot_twins" / f"{i:04d}" / f"{name}.zarr")


def _sample(vlm: VLM, samples: list[Sample], seed: int, folder: Path) -> None:
    pictures = [sample.scene.draw() for sample in samples]
    for i, sample in enumerate(progress(samples[:MOST_ANSWERS], description="sampled answers")):
        others = [*pictures[i + 1 :], *pictures[:i]][:OTHERS]
        found = sampled_dependence(
            vlm, prompt_of(vlm, sample), SAMPLED, others, max_new_tokens=MAX_NEW_TOKENS, seed=seed
        )
        for j, data in enumerate(found):
            data.attrs["versions"] = _versions_text()
            save_dependence(data, folder / "cot_answers" / f"{i:04d}" / f"{j}.zarr")


def _compare(vlm: VLM, samples: list[Sample], folder: Path) -> None:
    """Compare all interventions at once, since they share runs, and write them by figure."""
    from attnlens.experiments.recovery import UNTOUCHED, Recovery

    by_file = {"recovery.zarr": recovery_interventions(), "routes.zarr": route_interventions()}
    found = recover(
        vlm,
        [prompt_of(vlm, sample) for sample in samples],
        by_file["recovery.zarr"] | by_file["routes.zarr"],
        MAX_NEW_TOKENS,
        expected=[s.question.answer for s in samples],
        detail="step",
        reuse=True,
    ).data.assign_attrs(versions=_versions_text())
    for name, interventions in by_file.items():
        Recovery(found.sel(run=[UNTOUCHED, *interventions])).save(folder / name)


def _versions_text() -> str:
    return ", ".join(f"{name} {number}" for name, number in versions().items())
