"""Labelled arrays as netCDF files, read back as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.text import one_line

if TYPE_CHECKING:
    import xarray as xr


def write_netcdf(data: xr.Dataset, path: Path) -> None:
    """Write a dataset, whole or not at all."""
    with write_file(path) as temporary:
        temporary.write_bytes(bytes(data.to_netcdf(engine="scipy")))


def read_netcdf(path: Path, what: str) -> xr.Dataset:
    """Read a dataset into memory.

    Parameters
    ----------
    path
        The file.
    what
        What it should hold, for the message.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    """
    import xarray as xr

    try:
        data = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # whatever the reader makes of a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{str(path)!r} cannot be read as {what} ({one_line(reason)}): give a file that "
            "attnlens has written"
        ) from error
    for name, values in data.variables.items():
        if values.dtype == object or values.dtype.kind == "S":  # texts come back as objects
            data[name] = values.astype(str)
    if "step" in data:
        data["step"] = data["step"].astype(np.int64)  # the format has none
    return data
