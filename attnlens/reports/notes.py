"""Notes beside results: what they were made with, and which files they are.

When the note of a folder says what a command would write now, and all its files are there, the
folder is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnlens
from attnlens.errors import InputError
from attnlens.reports.jobs import Job

if TYPE_CHECKING:
    from attnlens.models.load import VLM

NOTE = "settings.json"
"""Name of the file that holds a note, in folders that are a command's own."""
WEIGHTS = (".safetensors", ".bin")
"""Endings of the weights of a checkpoint."""
SETTINGS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""Names of the other files of a checkpoint that results follow from."""
MOST_HASHED = 64 * 2**20
"""Larger weights are told by size and time of change, in bytes."""
FILES = "files"
"""Under which name a note lists what lies beside it."""
LONGEST_DIFFERENCE = 60
"""Longest pair of values that is shown where a setting has changed, in characters."""


def note_of(job: Job, settings: Any, *, leaving_out: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that a question's results follow from, as plain values, but for its true answer.

    Parameters
    ----------
    job
        The question.
    settings
        The command's settings, a dataclass.
    leaving_out
        Names of settings that results do not follow from.
    """
    kept = {name: value for name, value in asdict(settings).items() if name not in leaving_out}
    asked = {"image_sha256": job.image_sha256, "question": job.question}
    return {"attnlens": attnlens.__version__, **asked, "settings": kept}


def model_note(vlm: VLM) -> dict[str, Any]:
    """Return what a model and the libraries under it are, as far as results follow from it.

    Of a folder's configuration, processor and tokenizer: hashes, and so of small weights. Of large
    weights: sizes and times of change, which are cheap to ask.
    """
    from attnlens.models.load import TESTBED

    parameter = next(vlm.model.parameters())
    folder = TESTBED if vlm.name == "testbed" else Path(vlm.name)
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    noted = {}
    for path in files:
        found = path.stat()
        if path.name in SETTINGS or (path.suffix in WEIGHTS and found.st_size <= MOST_HASHED):
            noted[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix in WEIGHTS:
            noted[path.name] = f"{found.st_size} bytes, changed at {found.st_mtime_ns} ns"
    return {
        "name": vlm.name,
        "revision": getattr(vlm.model.config, "_commit_hash", None),
        "files": noted,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        **{name: version(name) for name in ("torch", "transformers")},
    }


def write_note(
    path: Path, note: Mapping[str, Any], *, beginning: str = "", shared: Sequence[str] = ()
) -> None:
    """Write a note into a folder that is being made, with the sizes of what lies beside it.

    Parameters
    ----------
    path
        The file.
    note
        What the results follow from.
    beginning
        Of the names of files and folders that are the note's own.
    shared
        Names without ending of files that others write too, with other endings perhaps: it is only
        noted that there is one.
    """
    sizes: dict[str, int | None] = {}
    for file in sorted(path.parent.rglob("*")):
        name = file.relative_to(path.parent)
        if not file.is_file() or name == Path(path.name):
            continue
        if name.parts[0].startswith(beginning):
            sizes[name.as_posix()] = file.stat().st_size
        elif name.stem in shared:
            sizes[f"{name.stem}.*"] = None
    text = json.dumps({**note, FILES: sizes}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_note(path: Path) -> dict[str, Any]:
    """Read a note, without its list of files; empty where there is none."""
    return {name: value for name, value in _read(path).items() if name != FILES}


def is_whole(path: Path) -> bool:
    """Whether everything that lay beside a note when it was written still does."""
    files = _read(path).get(FILES)
    if not isinstance(files, dict):
        return False
    for name, size in files.items():
        try:
            if size is None:
                there = any(file.stat().st_size for file in path.parent.glob(name))
            else:
                there = (path.parent / name).stat().st_size == size
        except OSError:
            return False
        if not there:
            return False
    return True


@contextmanager
def made_again(note: Path) -> Iterator[None]:
    """Take away the note of results that turn out to be unreadable: they are made anew next time.

    Raises
    ------
    InputError
        As inside the block, with advice.
    """
    try:
        yield
    except InputError as error:
        note.unlink(missing_ok=True)
        raise InputError(f"{error}. Give the same command again: it is made anew") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in what two notes differ: the names of settings, and both values where they are short."""
    flat = [_flat(before), _flat(now)]
    said = []
    for name in sorted({*flat[0], *flat[1]}):
        one, other = (values.get(name) for values in flat)
        if one != other:
            both = f"{one!r}, now {other!r}"
            said.append(f"{name} ({both})" if len(both) <= LONGEST_DIFFERENCE else name)
    return said


def _flat(note: Mapping[str, Any]) -> dict[str, Any]:
    """Name and value of everything in a note; ``model.dtype`` is that of a mapping inside."""
    found: dict[str, Any] = {}
    for name, value in note.items():
        inside = _flat(value) if isinstance(value, Mapping) else None
        found |= {name: value} if inside is None else {f"{name}.{n}": v for n, v in inside.items()}
    return found
