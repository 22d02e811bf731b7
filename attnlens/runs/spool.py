"""Collections that may be gone through many times and are never held in memory as a whole."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar

from attnlens.errors import InputError

Item = TypeVar("Item")


class Spool(Collection, Generic[Item]):
    """Items of one dataclass, kept in a temporary file that has no name, 8 bytes each in memory.

    Parameters
    ----------
    read
        Makes an item of its fields, as JSON gives them; those of a dataclass in it are a mapping.
    items
        The first items.
    """

    def __init__(
        self, read: Callable[[Mapping[str, Any]], Item], items: Iterable[Item] = ()
    ) -> None:
        self._read = read
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the items)
        self._ends = array("q", [0])
        for item in items:
            self.append(item)

    def append(self, item: Item) -> None:
        """Add an item at the end.

        Raises
        ------
        InputError
            If the temporary folder has no room.
        RecursionError
            If a field is nested too deeply.
        """
        content = json.dumps(item, default=_fields).encode()
        try:
            self._file.seek(self._ends[-1])
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"answers cannot be kept in {tempfile.gettempdir()!r} ({error.strerror}): set "
                "TMPDIR to a folder with room"
            ) from error
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> Item:
        place = range(len(self))[place]
        self._file.seek(self._ends[place])
        return self._read(json.loads(self._file.read(self._ends[place + 1] - self._ends[place])))

    def __iter__(self) -> Iterator[Item]:
        return map(self.__getitem__, range(len(self)))

    def __contains__(self, item: object) -> bool:
        return any(item == one for one in self)


def _fields(item: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; unlike ``asdict``, without going into deep ones."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


class Lazy(Collection, Generic[Item]):
    """Items that are made anew each time they are gone through.

    Parameters
    ----------
    make
        Gives the items, always the same.
    count
        How many there are.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], count: int) -> None:
        self._make = make
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return self._make()

    def __contains__(self, item: object) -> bool:
        return any(item == one for one in self)
