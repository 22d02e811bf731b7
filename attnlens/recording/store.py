"""Traces on disk: a Zarr folder with a manifest that shows whether it is whole.

Zarr silently reads a missing chunk as fill values, so the manifest lists every file with its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.files import write_folder
from attnlens.text import one_line

FORMAT = "attnlens-trace"
FORMAT_VERSION = 2
"""2: ``hidden`` counts the keys that a mask hid; in 1 they were counted as visible."""
MANIFEST = "attnlens.json"
# pickling codecs exist for Zarr: nothing outside this list is ever opened
_CODECS = {"blosc", "zstd", "zlib", "gzip", "lz4", "vlen-utf8"}


def save_trace(data: xr.Dataset, path: Path, *, replace: bool) -> None:
    """Write the dataset of a trace; see ``Trace.save``."""
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise InputError(f"{str(path)!r} holds something else than a trace: give a new folder")
    if (path / MANIFEST).is_file() and not replace:
        raise InputError(
            f"{str(path)!r} exists already: give a new folder, or replace=True to write over the "
            "trace in it"
        )
    attrs, data = data.attrs, data.copy()
    data.attrs = {"attnlens": _attributes_as_json(attrs)}
    for name in list(data.variables):
        # as objects, texts may differ in length; an empty array of objects has no type
        if data[name].dtype.kind == "U" and data[name].size:
            data[name] = data[name].astype(object)
    with write_folder(path, replace=replace) as temporary:
        data.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)
        files = {name: _digest(temporary / name) for name in _files(temporary)}
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _attributes_as_json(attrs: dict[str, Any]) -> str:
    for name, value in attrs.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the attribute {name!r} of the trace cannot be saved ({one_line(str(error))}): "
                "give it numbers, texts, lists and dictionaries of these"
            ) from error
    return json.dumps(attrs)


def load_trace(path: Path) -> xr.Dataset:
    """Read the dataset of a trace; see ``Trace.load``."""
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise InputError(f"there is no trace at {str(path)!r}")
    manifest = _manifest(path)
    try:
        _check_files(path, manifest["files"])
        with xr.open_zarr(path, consolidated=True, zarr_format=2) as stored:
            data = stored.load()
        attrs = json.loads(data.attrs["attnlens"])
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = one_line(str(error))
        raise InputError(f"the trace {str(path)!r} cannot be read: {reason}") from error
    data.attrs = attrs
    if manifest["version"] < 2 and any(
        "knockout" in str(event.get("intervention")) for event in attrs.get("interventions", ())
    ):
        data.attrs["hidden_keys_counted"] = False
    for name in list(data.variables):
        if data[name].dtype.kind in "OT":
            # NumPy casts variable-length texts to fixed ones only through objects
            data[name] = data[name].astype(object).astype(str)
    return data


def _manifest(path: Path) -> dict[str, Any]:
    foreign = InputError(
        f"{str(path)!r} is no attnlens trace: give a folder that Trace.save has written"
    )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        kind, version, files = manifest["format"], manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise foreign from error
    if kind != FORMAT or type(version) is not int or version < 1 or not isinstance(files, dict):
        raise foreign
    if version > FORMAT_VERSION:
        raise InputError(
            f"the trace {str(path)!r} has format version {version}, and this attnlens reads up to "
            f"{FORMAT_VERSION}: install a newer attnlens"
        )
    return manifest


def _check_files(path: Path, listed: dict[str, Any]) -> None:
    files = _files(path)
    for name, digest in listed.items():
        if name not in files:
            raise InputError(f"the trace {str(path)!r} is incomplete: {name!r} is missing")
        if _digest(path / name) != digest:
            raise InputError(f"the trace {str(path)!r} is damaged: {name!r} has changed")
    if extra := sorted(set(files) - set(listed)):
        raise InputError(f"the trace {str(path)!r} is damaged: {extra[0]!r} does not belong to it")
    _check_codecs(path, files)


def _check_codecs(path: Path, files: list[str]) -> None:
    for name in files:
        if Path(name).name not in (".zarray", ".zmetadata"):
            continue
        for codec in _codec_names(json.loads((path / name).read_text(encoding="utf-8"))):
            if codec not in _CODECS:
                raise InputError(
                    f"the trace {str(path)!r} is stored with the codec {codec!r}, which attnlens "
                    "never opens"
                )


def _codec_names(meta: Any) -> list[str]:
    """List all compressors and filters in Zarr metadata."""
    if isinstance(meta, list):
        return [name for item in meta for name in _codec_names(item)]
    if not isinstance(meta, dict):
        return []
    names = [str(meta["id"])] if "id" in meta else []
    return names + [n for k, v in meta.items() if k != "attributes" for n in _codec_names(v)]


def _files(path: Path) -> list[str]:
    """List every file below a folder except the manifest, relative and in order."""
    found = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_plain(value: Any) -> Any:
    """Turn NumPy scalars and tuples into plain JSON-able values."""
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
