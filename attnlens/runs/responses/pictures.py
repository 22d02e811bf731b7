"""Where the pictures of a file of answers are: named by it, in a folder, or inside the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from attnlens.errors import InputError
from attnlens.files import write_file
from attnlens.stores import beside, is_store, is_url, reaching
from attnlens.text import LONGEST_PATH, quoted, shortened


class Pictures:
    """Finds the picture of each record.

    Parameters
    ----------
    beside
        Folder of the file of answers, to which names are relative.
    folder
        Folder with the pictures, in its place.
    column
        Field of the records that names or holds the picture, in place of the format's own.
    save_folder
        Where pictures that stand in the file itself are written, each under its hash; they are
        left out when not given.

    Raises
    ------
    InputError
        If there is no such folder.
    """

    def __init__(
        self, beside: Path, folder: Path | None, column: str | None, save_folder: Path | None
    ) -> None:
        if folder is not None:
            with reaching(folder):
                there = folder.is_dir()
            if not there:
                raise InputError(f"there is no folder {quoted(folder)}: give one with the pictures")
        self._beside = beside
        self._folder = folder
        self.column = column
        self._save_folder = save_folder
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, record: Mapping[str, Any], named: Any, name: Any) -> str:
        """Return the path or URL of a record's picture; empty where it has none.

        Parameters
        ----------
        record
            The record.
        named
            What stands for the picture in it, by its format.
        name
            Its identifier, which may be the name of a file in the folder.

        Raises
        ------
        InputError
            If the record lacks the column, or what stands there is no picture's.
        """
        if self.column is not None:
            named = record.get(self.column)
            if named is None:
                there = shortened(", ".join(map(repr, record)), 80)
                raise InputError(f"has no {self.column!r}; it has {there}")
        if named is None or named == "":
            return self._of_name(name)
        if not isinstance(named, str):
            raise InputError(f"the picture is {shortened(repr(named), 80)}: give a path or base64")
        if named[:5].lower() == "data:":
            return self._saved(named)
        if len(named) > LONGEST_PATH and not is_url(named):
            return self._saved(f"data:;base64,{named}")
        return self._at(named)

    def _at(self, named: str) -> str:
        if self._folder is None:
            return beside(self._beside, named)
        inside = [self._folder / named, self._folder / Path(named).name]
        return str(next(filter(_is_file, inside), inside[0]))

    def _of_name(self, name: Any) -> str:
        if self._folder is None or name is None:
            return ""
        if self._by_stem is None:
            from attnlens.models.videos import PICTURES

            self._by_stem = {}
            for path in sorted(self._folder.iterdir()):
                if path.suffix.lower() in PICTURES:
                    self._by_stem.setdefault(path.stem, []).append(str(path))
        found = self._by_stem.get(str(name), [])
        if len(found) > 1:
            raise InputError(f"has two pictures, {quoted(found[0])} and {quoted(found[1])}")
        return found[0] if found else ""

    def _saved(self, url: str) -> str:
        """Write the picture of a data URL where it is not there yet, and return its path."""
        if self._save_folder is None:
            return ""
        from PIL import Image

        from attnlens.models.images import data_of_url

        content = data_of_url(url)
        try:
            kind = str(Image.open(BytesIO(content)).format).lower()
        except Exception as error:  # decoders of damaged files raise errors of all kinds
            raise InputError(f"the picture of {len(content):,} bytes cannot be read") from error
        path = self._save_folder / f"{hashlib.sha256(content).hexdigest()}.{kind}"
        if not path.is_file():
            with write_file(path) as temporary:
                temporary.write_bytes(content)
        return str(path)


def _is_file(path: Path) -> bool:
    # unlike Path.is_file, os.path.isfile never raises
    return path.is_file() if is_store(path) else os.path.isfile(path)
