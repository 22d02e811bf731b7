"""``attnlens.dependence``: what each token's distribution loses without the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from PIL import Image

from attnlens.errors import InputError
from attnlens.experiments.force import differing_parts
from attnlens.experiments.run import run
from attnlens.measures.inputs import visual_key_share
from attnlens.measures.recovery import divergences, entropy
from attnlens.measures.share import visual_share
from attnlens.models.images import open_image, open_resized, plain_picture
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, encode_prompt, with_pictures
from attnlens.recording.generation import altered_by
from attnlens.recording.store import DEPENDENCE, load_dataset, save_dataset
from attnlens.recording.trace import Trace
from attnlens.stores import located

REFERENCES = ("removed", "blank")
"""What replaces the image: nothing (a prompt of text alone), or a plain picture of its size in its
mean colour."""


def dependence(
    vlm: VLM,
    trace: Trace,
    *,
    prompt: Prompt | None = None,
    references: Sequence[str] = REFERENCES,
    other: Any = None,
) -> xr.Dataset:
    """Measure how much each response token depends on the image, by teacher forcing.

    The recorded response is fed to the model with the image, and with each reference instead of it,
    in one forward pass each. Step t is the pass that predicts response token t, as in the
    trace.

    Parameters
    ----------
    vlm
        The model that made the trace.
    trace
        A recorded generation, untouched by interventions.
    prompt
        What was asked. When not given, it is built again from what the trace notes of its text and
        image files.
    references
        Some of ``REFERENCES``.
    other
        Another image (a path or a ``PIL.Image``), as a further reference ``other``; or a list of
        several, as ``other 1``, ``other 2``, ...; resized to the size of the prompt's image.

    Returns
    -------
    xarray.Dataset
        ``kl[reference, step]`` (nats, of the distribution with the image from the one without),
        ``hellinger`` (0 to 1), ``log_ratio`` (nats: log-probability of the response token with the
        image minus without), ``entropy_without`` (nats, of the next token without the image);
        ``log_probability[step]`` with the image and ``entropy[step]``, the same with it;
        ``key_share[step]``, the fraction of visible keys that is visual; and ``mass[step]``,
        ``look_back[step]``: visual share of the same step, which shows where attention and
        use differ. Coordinates of the tokens as in the trace; attributes ``model`` and, where
        it is known how the response was generated, ``altered_by``: the settings that kept it from
        being drawn from the model's own distribution, such as ``top_k=50``, or an empty text.

    Raises
    ------
    InputError
        If a reference is unknown, the prompt cannot be built again or is not that of the trace, or
        the trace was made under an intervention.
    """
    if not isinstance(trace, Trace):
        raise InputError(f"{type(trace).__name__} was given: give a trace (attnlens.run)")
    if not trace.untouched:
        raise InputError("the trace was made under an intervention: give one of an untouched run")
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise InputError(f"unknown reference {unknown[0]!r}: use {', '.join(REFERENCES)}")
    asked = _same_prompt(vlm, trace) if prompt is None else prompt
    if differing_parts(asked, trace):
        raise InputError("the prompt is not that of the trace: give the one that was generated")
    ids = trace.data["predicted_token_id"].values.tolist()
    without = {name: _without(vlm, asked, name) for name in references}
    if other is not None:
        several = isinstance(other, (list, tuple))
        for number, image in enumerate(other if several else [other], 1):
            shown = [open_image(image)[0]] * len(asked.pictures)
            without[f"other {number}" if several else "other"] = _with_pictures(vlm, asked, shown)
    if not without:
        raise InputError("no reference was given: name one, or give another image")
    log_p = _log_probabilities(vlm, asked, ids)
    chosen = log_p[np.arange(len(ids)), ids]
    variables: dict[str, Any] = {
        "log_probability": (("step",), chosen),
        "entropy": (("step",), entropy(log_p)),
    }
    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("kl", "hellinger", "log_ratio", "entropy_without")
    }
    for reference in without.values():
        log_q = _log_probabilities(vlm, reference, ids)
        kl, hellinger = divergences(log_p, log_q)
        rows["kl"].append(kl)
        rows["hellinger"].append(hellinger)
        rows["log_ratio"].append(chosen - log_q[np.arange(len(ids)), ids])
        rows["entropy_without"].append(entropy(log_q))
    for name, values in rows.items():
        variables[name] = (("reference", "step"), np.stack(values))
    data = xr.Dataset(variables, {"reference": list(without), "step": trace.data["step"].values})
    data["key_share"] = (("step",), visual_key_share(trace.data).values)
    for name, definition in (("mass", "mass"), ("look_back", "look-back")):
        share = visual_share(trace, definition)
        data[name] = share.reindex(step=data["step"]).drop_vars(
            [c for c in share.coords if c != "step"]
        )
        data[name].attrs = {"definition": definition}
    data.attrs["model"] = vlm.name
    settings = trace.attrs.get("generation")
    if settings:  # those of a forced response are not known
        data.attrs["altered_by"] = ", ".join(altered_by(settings))
    tokens = ("query_token", "predicted_token", "predicted_token_id", "region")
    return data.assign_coords({name: trace.data[name] for name in tokens})


def _same_prompt(vlm: VLM, trace: Trace) -> Prompt:
    noted = trace.attrs.get("images", [])
    if any(image.get("frames") for image in noted):
        raise InputError("the prompt has a video, which cannot be replaced: give one with images")
    paths = [image.get("path") for image in noted]
    if not paths or not all(paths):
        raise InputError("the trace notes no image file: give the prompt that was generated")
    limits = trace.attrs.get("replayed", {}).get("resized_first")
    opened = [
        open_image(located(path)) if limits is None else open_resized(path, *limits)
        for path in paths
    ]
    for (_, info), noted in zip(opened, trace.attrs["images"], strict=True):
        if info.sha256 != noted.get("sha256"):
            raise InputError(
                f"the image {noted.get('path')!r} has changed since the trace was made: "
                "give the prompt that was generated"
            )
    first = trace.attrs["images"][0]
    return encode_prompt(
        vlm,
        trace.attrs["prompt"],
        opened,
        (first.get("min_pixels"), first.get("max_pixels")),
        mode=trace.attrs["mode"],
        question=trace.attrs["question"],
    )


def _without(vlm: VLM, prompt: Prompt, reference: str) -> Prompt:
    if reference == "blank":
        return _with_pictures(vlm, prompt, [plain_picture(p) for p in prompt.pictures])
    return _with_pictures(vlm, prompt, [])


def _with_pictures(vlm: VLM, prompt: Prompt, pictures: list[Image.Image]) -> Prompt:
    sized = [
        picture.resize(own.size) if picture.size != own.size else picture
        for picture, own in zip(pictures, prompt.pictures, strict=False)
    ]
    return with_pictures(vlm, prompt, sized)


def _log_probabilities(vlm: VLM, prompt: Prompt, ids: list[int]) -> np.ndarray:
    """Log-probabilities [steps, vocabulary] of a forced response."""
    inputs = vlm.family.append(vlm.model.config, prompt.inputs, ids[:-1])
    with torch.no_grad():
        logits = vlm.model(**inputs, use_cache=False, logits_to_keep=len(ids)).logits
    assert logits.shape[1] == len(ids)
    return logits[0].float().log_softmax(-1).cpu().numpy()


def sampled_dependence(
    vlm: VLM,
    prompt: Prompt,
    samples: int,
    others: Sequence[Any],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> list[xr.Dataset]:
    """Sample answers from the model's own distribution and measure their dependence on the image.

    Parameters
    ----------
    vlm, prompt
        The model, and what is asked.
    samples
        How many answers; the i-th has the seed ``seed + i``.
    others
        Other images that each is measured against.
    max_new_tokens
        Longest answer.
    seed
        Of the first answer.

    Returns
    -------
    list of xarray.Dataset
        What ``attnlens.dependence`` gives, with the references ``removed`` and the other images;
        ``attnlens.measures.mutual_information`` takes one such list for each prompt.
    """
    results = []
    for i in range(samples):
        answer = run(
            vlm,
            prompt,
            max_new_tokens,
            seed=seed + i,
            visual_map=False,
            do_sample=True,  # at temperature 1, nothing cut: the bound is a mean over this
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        images = list(others) or None
        results.append(
            dependence(vlm, answer, prompt=prompt, references=("removed",), other=images)
        )
    return results


def save_dependence(data: xr.Dataset, path: str | Path, *, replace: bool = False) -> None:
    """Write what ``dependence`` returned as a Zarr folder, whole or not at all.

    Parameters
    ----------
    data
        The result.
    path
        The folder, usually ``<name>.zarr``.
    replace
        Whether to write over a result that is there.

    Raises
    ------
    InputError
        If the folder is not empty, and ``replace`` is not set or it holds something else; it cannot
        be written; or its name ends in ``.nc``.
    """
    save_dataset(DEPENDENCE, data, located(path), replace=replace)


def load_dependence(path: str | Path) -> xr.Dataset:
    """Read what ``save_dependence`` wrote, or a netCDF file of an earlier version.

    Raises
    ------
    InputError
        If there is none, it is damaged or incomplete, is something else, or was written by a newer
        version.
    """
    data, _ = load_dataset(DEPENDENCE, located(path))
    if not {"kl", "mass"} <= set(data.data_vars) or not {"reference", "step"} <= set(data.dims):
        raise InputError(
            f"{str(path)!r} holds no dependence: give what attnlens.dependence returns"
        )
    return data
