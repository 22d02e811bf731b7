"""What results follow from: question, settings, model and library versions, as plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens._version import __version__
from attnlens.runs.dataset import Question
from attnlens.runs.settings import KeptSettings

if TYPE_CHECKING:
    from attnlens.models.load import VLM
    from attnlens.runs.settings import PromptSettings

WEIGHTS = (".safetensors", ".bin")
"""Suffixes of a checkpoint's weights."""
CHECKPOINT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""The other files of a checkpoint that results follow from."""
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "torchvision")
"""What turns a prompt into tokens and pixels, and these into an answer."""
RESOLVED = ("model", "device", "dtype")
"""Settings that ``model_provenance`` gives as what they became: auto may become cpu."""
OF_VIDEOS = ("fps", "max_frames")
"""Settings that say nothing of questions about images."""
MOST_HASHED = 64 * 2**20
"""Weights larger than this, in bytes, are identified by size and modification time."""
LONGEST_DIFFERENCE = 60
"""Longest pair of values shown where a setting has changed, in characters."""


def provenance(
    question: Question, settings: PromptSettings, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that the results of a question follow from.

    Parameters
    ----------
    question, settings
        What is asked, and how.
    model
        From ``model_provenance``.
    """
    left_out = {*RESOLVED, *(() if question.is_video else OF_VIDEOS)}
    asked = {name: value for name, value in asdict(settings).items() if name not in left_out}
    if isinstance(settings, KeptSettings):
        asked |= {"visual_map": settings.keeps_map(question), "map_heads": settings.map_heads}
        for name, usual in (("visual_map", question.is_video), ("map_heads", None)):
            if asked[name] == usual:  # as it was before there were these settings
                del asked[name]
    return {
        "attnlens": __version__,
        "image_sha256": question.image_sha256,
        "question": question.text,
        "settings": asked,
        "model": dict(model),
        **({"video": True, "av": _version("av")} if question.is_video else {}),
    }


def model_provenance(vlm: VLM) -> dict[str, Any]:
    """Return what identifies a model and the libraries that run it.

    A checkpoint folder's configuration, processor and tokenizer files are hashed, and so are small
    weights. Large weights are identified by size and modification time, which cost nothing to read.
    """
    from attnlens.models.load import TESTBED

    parameter = next(vlm.model.parameters())
    folder = TESTBED if vlm.name == "testbed" else Path(vlm.name)
    paths = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    files = {}
    for path in paths:
        status = path.stat()
        small = path.suffix in WEIGHTS and status.st_size <= MOST_HASHED
        if path.name in CHECKPOINT_FILES or small:
            files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix in WEIGHTS:
            files[path.name] = f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"
    return {
        "name": vlm.name,
        "revision": getattr(vlm.model.config, "_commit_hash", None),
        "files": files,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": _device_name(parameter.device),
        "attention": getattr(vlm.model.config, "_attn_implementation", None),
        **{name: _version(name) for name in LIBRARIES},
    }


def _device_name(device: Any) -> str:
    """Name the kind of a device, not its number: two cards of one model give the same results."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # some are optional
        return None


def canonical(settings: Mapping[str, Any]) -> str:
    """Return settings as JSON: the same text for the same settings, whatever their order."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the settings that changed, each with both values where these are short."""
    old, new = _flat(before), _flat(now)
    changed = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            values = f"{old.get(name)!r}, now {new.get(name)!r}"
            changed.append(f"{name} ({values})" if len(values) <= LONGEST_DIFFERENCE else name)
    return changed


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; ``model.dtype`` is ``dtype`` in the mapping ``model``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
