"""Results on disk: Zarr folders, each with a manifest that lists its files and their hashes.

Zarr silently reads a missing chunk as fill values; the manifest shows that something is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from attnlens.errors import InputError
from attnlens.files import write_folder
from attnlens.stores import is_store, local_copy
from attnlens.text import one_line

MANIFEST = "attnlens.json"
# pickling codecs exist for Zarr: nothing outside this list is ever opened
_CODECS = {"blosc", "zstd", "zlib", "gzip", "lz4", "vlen-utf8"}
_OLD = ".nc"


@dataclass(frozen=True)
class Kind:
    """A kind of result that is kept on disk.

    Attributes
    ----------
    name
        What it is called in messages.
    writer
        The function that saves it, for messages.
    version
        Of the format that is written; older ones are read, too.
    """

    name: str
    writer: str
    version: int = 1

    @property
    def format(self) -> str:
        """Name of the format, in the manifest."""
        return f"attnlens-{self.name}"


TRACE = Kind("trace", "Trace.save", version=2)
"""In version 1, keys that a mask hid were counted as visible; ``hidden`` counts them since."""
RECOVERY = Kind("recovery", "Recovery.save")
DEPENDENCE = Kind("dependence", "attnlens.experiments.dependence.save_dependence")


def save_dataset(kind: Kind, data: xr.Dataset, path: Path, *, replace: bool = False) -> None:
    """Write a dataset as a Zarr folder, whole or not at all.

    Raises
    ------
    InputError
        If the folder holds something else, or a result and ``replace`` is not set; it cannot be
        written; its name ends in ``.nc``; or JSON cannot hold an attribute.
    """
    if path.suffix == _OLD:
        raise InputError(
            f"{str(path)!r} names a netCDF file, and a {kind.name} is saved as a Zarr folder: give "
            f"a name that ends in .zarr, such as {path.with_suffix('.zarr').name!r}"
        )
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise InputError(
            f"{str(path)!r} holds something else than a {kind.name}: give a new folder"
        )
    if (path / MANIFEST).is_file() and not replace:
        raise InputError(
            f"{str(path)!r} exists already: give a new folder, or replace=True to write over the "
            f"{kind.name} in it"
        )
    attrs, data = data.attrs, data.copy()
    data.attrs = {"attnlens": _attributes_as_json(attrs, kind)}
    for name in list(data.variables):
        # as objects, texts may differ in length; an empty array of objects has no type
        if data[name].dtype.kind == "U" and data[name].size:
            data[name] = data[name].astype(object)
    with write_folder(path, replace=replace, last=MANIFEST) as temporary:
        data.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)
        files = {name: _digest(temporary / name) for name in _files(temporary)}
        manifest = {"format": kind.format, "version": kind.version, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _attributes_as_json(attrs: dict[str, Any], kind: Kind) -> str:
    for name, value in attrs.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the attribute {name!r} of the {kind.name} cannot be saved "
                f"({one_line(str(error))}): give it numbers, texts, lists and dictionaries of these"
            ) from error
    return json.dumps(attrs)


def load_dataset(kind: Kind, path: Path) -> tuple[xr.Dataset, int]:
    """Read what ``save_dataset`` wrote into memory, and the version of its format.

    Recoveries and dependences may also be netCDF files, as earlier versions wrote them; the version
    is then 0.

    Raises
    ------
    InputError
        If there is none, it is damaged or incomplete, is something else, or was written by a newer
        version.
    """
    if not is_store(path) and not os.path.exists(path):  # unlike Path.exists, never raises
        raise InputError(f"there is no {kind.name} at {str(path)!r}")
    with local_copy(path) as local:
        return _load(kind, local, str(path))


def _load(kind: Kind, path: Path, named: str) -> tuple[xr.Dataset, int]:
    """Do so with a local path; ``named`` is what messages call it."""
    if kind is not TRACE and path.is_file():
        return _load_netcdf(kind, path, named), 0
    manifest = _manifest(kind, path, named)
    try:
        _check_files(path, manifest["files"], f"the {kind.name} {named!r}")
        with xr.open_zarr(path, consolidated=True, zarr_format=2) as stored:
            data = stored.load()
        data.attrs = json.loads(data.attrs["attnlens"])
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = one_line(str(error))
        raise InputError(f"the {kind.name} {named!r} cannot be read: {reason}") from error
    for name in list(data.variables):
        if data[name].dtype.kind in "OT":
            # NumPy casts variable-length texts to fixed ones only through objects
            data[name] = data[name].astype(object).astype(str)
    return data, manifest["version"]


def _load_netcdf(kind: Kind, path: Path, named: str) -> xr.Dataset:
    try:
        data = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # a broken file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{named!r} cannot be read as a {kind.name} ({one_line(reason)}): give a folder "
            f"that {kind.writer} has written"
        ) from error
    for name, values in data.variables.items():
        if values.dtype == object or values.dtype.kind == "S":  # texts come back as objects
            data[name] = values.astype(str)
    if "step" in data:
        data["step"] = data["step"].astype(np.int64)  # the format has no such type
    data.attrs = as_plain(data.attrs)
    return data


def stored_kind(path: Path) -> str | None:
    """Return the name of the format of a folder, or None where its manifest cannot be read."""
    try:
        return str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def stored_in(folder: Path) -> list[Path]:
    """Return the results directly inside a folder, sorted: ``*.zarr``, and older ``*.nc``."""
    found = (path for path in folder.glob("*") if path.suffix in (".zarr", _OLD))
    return sorted({with_either_ending(path) for path in found})


def with_either_ending(path: Path) -> Path:
    """Return a path with the ending ``.zarr``, or ``.nc`` where only that exists."""
    new, old = path.with_suffix(".zarr"), path.with_suffix(_OLD)
    return old if old.is_file() and not new.exists() else new


def _manifest(kind: Kind, path: Path, named: str) -> dict[str, Any]:
    foreign = InputError(
        f"{named!r} is no attnlens {kind.name}: give a folder that {kind.writer} has written"
    )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found, version, files = manifest["format"], manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise foreign from error
    if found != kind.format or type(version) is not int or version < 1:
        raise foreign
    if not isinstance(files, dict):
        raise foreign
    if version > kind.version:
        raise InputError(
            f"the {kind.name} {named!r} has format version {version}, and this attnlens reads "
            f"up to {kind.version}: install a newer attnlens"
        )
    return manifest


def _check_files(path: Path, listed: dict[str, Any], where: str) -> None:
    files = _files(path)
    for name, digest in listed.items():
        if name not in files:
            raise InputError(f"{where} is incomplete: {name!r} is missing")
        if _digest(path / name) != digest:
            raise InputError(f"{where} is damaged: {name!r} has changed")
    if extra := sorted(set(files) - set(listed)):
        raise InputError(f"{where} is damaged: {extra[0]!r} does not belong to it")
    for name in files:
        if Path(name).name not in (".zarray", ".zmetadata"):
            continue
        for codec in _codec_names(json.loads((path / name).read_text(encoding="utf-8"))):
            if codec not in _CODECS:
                raise InputError(
                    f"{where} is stored with the codec {codec!r}, which attnlens never opens"
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
