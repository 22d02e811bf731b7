"""Runs of the testbed from which ``attnlens figures`` draws.

The layout of a folder of runs, which any model can fill (``attnlens figures --traces DIR``)::

    DIR/
      <mode>/0000.zarr     Trace.save of an untouched run, recorded with visual_map=True for the
                           overlays. Folder names are free: the trace itself notes its mode
      <mode>/0000.png      the image, where the one that the trace notes is not there any more
      <mode>/0000.json     the truth of the answer, where it is known: Sample.truth(tokens)
      long/0000.zarr       Trace.save of long answers, in which the number of keys grows much
      cot_twins/0000/      traces of one answer, forced with nothing and with more and more visual
                           tokens inserted: nothing.zarr, ROUTE 25%.zarr, ... (of any mode; as
                           attnlens dilution --insertion leaves them in dilution_runs)
      cot_answers/0000/    what attnlens.dependence returns of answers sampled to one question:
                           0.nc, 1.nc, ... (of any mode; as attnlens dilution --samples leaves them)
      dependence/0000.nc   what attnlens.dependence returns, by to_netcdf(path, engine="scipy")
      recovery.nc          Recovery.save of what attnlens.recover returns; or, where there is none,
                           NAME_recovery/recovery.nc, as attnlens recover leaves one
      routes.nc            the same, of Route(percent=...) with several percentages, named as
                           attnlens names them (route:25) or as here (ROUTE 25%)

Whatever is missing, the figures that need it are left out.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens._version import __version__
from attnlens.errors import InputError
from attnlens.experiments.dependence import dependence
from attnlens.experiments.force import force
from attnlens.experiments.recover import recover
from attnlens.experiments.run import run
from attnlens.experiments.sampled import sampled_dependence
from attnlens.experiments.twins import twins
from attnlens.files import write_folder
from attnlens.interventions import At, Copy, Inject, Intervention, Route
from attnlens.netcdf import write_netcdf
from attnlens.progress import progress
from attnlens.recording.trace import Trace
from attnlens.testbed.samples import Sample, held_out_sample, save_samples

if TYPE_CHECKING:
    from attnlens.models.load import VLM

MODES = ("cot", "back")
MOST_DEPENDENCE = 10
"""Runs whose dependence on the image is measured."""
MAX_NEW_TOKENS = 700
"""Longer than any true answer."""
MOST_LONG = 20
"""Long answers that are recorded."""
LONG: dict[str, Any] = {"steps": 60, "counts": 8, "grid": "small"}
"""What is asked for a long answer: 1,250 steps, in which the keys grow to more than five times."""
MOST_TWINS = 20
"""Answers that are forced with insertions."""
MOST_SAMPLED = 20
"""Questions to which answers are sampled."""
SAMPLED = 2
"""Answers to each."""
OTHERS = 8
"""Other images that each is measured against."""
PERCENTS = (12.5, 25, 50, 75, 100)
"""Percentages of ROUTE that are compared."""


def check_scenes(scenes: int, seed: int) -> None:
    """Refuse too few scenes, and a seed out of range."""
    if scenes < 2:
        raise InputError(f"{scenes} scenes have no interval: give at least 2")
    held_out_sample(seed, 0, MODES[0])


def ways() -> dict[str, Intervention]:
    """Return COPY and ROUTE with their controls, by name; they act at the first ``<back>``."""
    at = At("<back>", times=1)
    return {
        "COPY": Copy(when=at),
        "ROUTE 50%": Route(when=at, percent=50),
        "ROUTE 50%, random": Route(when=at, percent=50, select="random"),
        "ROUTE 50%, bottom": Route(when=at, percent=50, select="bottom"),
        "COPY of a blank image": Copy(when=at, source="blank"),
        "text-only": Inject(" I look again.", when=at),
    }


def routes() -> dict[str, Intervention]:
    """Return ROUTE with several percentages, by name; it acts at the first ``<back>``."""
    at = At("<back>", times=1)
    return {f"ROUTE {p:g}%": Route(when=at, percent=p) for p in PERCENTS}


def make_runs(vlm: VLM, folder: Path, scenes: int, seed: int = 0) -> None:
    """Run a testbed model on held-out scenes and write a folder, whole or not at all.

    Parameters
    ----------
    vlm
        A testbed model.
    folder
        Where to; must not exist or be empty.
    scenes
        Number of held-out scenes, at least 2; the same ones in each mode.
    seed
        Which ones.

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
        _long(vlm, min(scenes, MOST_LONG), seed, temporary)
        _insert(vlm, samples["cot"][:MOST_TWINS], temporary)
        _sample(vlm, samples["cot"], seed, temporary)
        _compare(vlm, samples["back"], temporary)


def _record(vlm: VLM, samples: dict[str, list[Sample]], folder: Path) -> None:
    listed = [(mode, i, one) for mode in MODES for i, one in enumerate(samples[mode])]
    for mode, i, sample in progress(listed, description="runs"):
        prompt = vlm.prompt(sample.scene.draw(), sample.question.text, mode)
        trace = run(vlm, prompt, MAX_NEW_TOKENS, visual_map=True, do_sample=False)
        trace.save(folder / mode / f"{i:04d}.zarr")
        if mode == "back" and i < MOST_DEPENDENCE:
            data = dependence(vlm, trace, prompt=prompt)
            data.attrs["versions"] = versions()
            write_netcdf(data, folder / "dependence" / f"{i:04d}.nc")


def _long(vlm: VLM, scenes: int, seed: int, folder: Path) -> None:
    """Record true answers to long questions: forced, since the model gets lost in its own."""
    for i in progress(range(scenes), description="long answers"):
        sample = held_out_sample(seed, i, "cot", **LONG)
        prompt = vlm.prompt(sample.scene.draw(), sample.question.text, "cot")
        ids = vlm.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        force(vlm, prompt, ids).save(folder / "long" / f"{i:04d}.zarr")


def _insert(vlm: VLM, samples: list[Sample], folder: Path) -> None:
    for i, sample in enumerate(progress(samples, description="insertions")):
        prompt = vlm.prompt(sample.scene.draw(), sample.question.text, "cot")
        said = Trace.load(folder / "cot" / f"{i:04d}.zarr")
        for name, twin in twins(vlm, prompt, said).items():
            twin.save(folder / "cot_twins" / f"{i:04d}" / f"{name}.zarr")


def _sample(vlm: VLM, samples: list[Sample], seed: int, folder: Path) -> None:
    pictures = [sample.scene.draw() for sample in samples]
    for i, sample in enumerate(progress(samples[:MOST_SAMPLED], description="sampled answers")):
        prompt = vlm.prompt(pictures[i], sample.question.text, "cot")
        others = [*pictures[i + 1 :], *pictures[:i]][:OTHERS]
        found = sampled_dependence(
            vlm, prompt, SAMPLED, others, max_new_tokens=MAX_NEW_TOKENS, seed=seed
        )
        for j, one in enumerate(found):
            one.attrs["versions"] = versions()
            write_netcdf(one, folder / "cot_answers" / f"{i:04d}" / f"{j}.nc")


def _compare(vlm: VLM, samples: list[Sample], folder: Path) -> None:
    """Compare all interventions in one go, since they share runs, and write them by figure."""
    from attnlens.experiments.recovery import Recovery
    from attnlens.experiments.recovery_tables import UNTOUCHED

    found = recover(
        vlm,
        [vlm.prompt(s.scene.draw(), s.question.text, "back") for s in samples],
        ways() | routes(),
        MAX_NEW_TOKENS,
        expected=[s.question.answer for s in samples],
        detail="step",
        reuse=True,
    ).data.assign_attrs(versions=versions())
    for name, chosen in (("recovery.nc", ways()), ("routes.nc", routes())):
        Recovery(found.sel(run=[UNTOUCHED, *chosen])).save(folder / name)


def versions() -> str:
    """Name the versions that decide what a run says."""
    others = (f"{name} {version(name)}" for name in ("torch", "transformers"))
    return ", ".join([f"attnlens {__version__}", *others])
