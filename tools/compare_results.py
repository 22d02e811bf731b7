"""Make the same results with two versions of the package, and compare them to the last digit.

``make DIR`` asks the testbed a few questions with every command that writes results; run it with
the one version and with the other, on one machine. ``compare OLD NEW`` reads both folders with the
version that runs it, so that it also shows that results of the older one still load. Numbers in
tables are to be the same as printed, masses the same bits. Times, versions and paths may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMANDS = {
    "sample": "testbed sample --out scenes --count 3 --seed 5 --mode back",
    "trend": "trend --data scenes/questions.jsonl --mode back --save_folder trend",
    "cot": "trend --image_path scenes/0000.png --question {question} --mode cot --save_folder one",
    "recover": (
        "recover --data scenes/questions.jsonl --intervention copy --intervention route:50 "
        "--intervention copy:blank --intervention boost:1 --intervention knockout "
        "--intervention inject:Wait --save_folder recover"
    ),
    "dilution": (
        "dilution --data scenes/questions.jsonl --insertion --samples 2 --save_folder dilution"
    ),
    "figures": "figures --scenes 3 --out figures --keep_runs runs",
}
DIFFERENT = ("seconds", "time", "version", "sha", "path", "folder", "created", "torch", "package")
"""What may differ: names that hold one of these."""


def make(folder: Path) -> None:
    """Run every command in a new folder."""
    folder.mkdir(parents=True)
    for command in COMMANDS.values():
        question = ""
        if "{question}" in command:
            line = (
                (folder / "scenes" / "questions.jsonl").read_text(encoding="utf-8").splitlines()[0]
            )
            question = json.loads(line)["question"]
        words = [question if word == "{question}" else word for word in command.split()]
        print("attnlens", *words, flush=True)
        subprocess.run(
            [sys.executable, "-m", "attnlens", *words],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )


def contents(folder: Path) -> dict[str, Any]:
    """Read what can be compared of a folder of results: by name, text or arrays."""
    import attnlens

    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.zarr")):
        found[str(path.relative_to(folder))] = attnlens.Trace.load(path).data
    for path in sorted([*folder.rglob("*.csv"), *folder.rglob("*.parquet")]):
        found[str(path.relative_to(folder))] = table_of(path)
    for name in ("dilution.json", "summary.json"):
        for path in sorted(folder.rglob(name)):
            text = json.loads(path.read_text(encoding="utf-8"))
            found[str(path.relative_to(folder))] = dict(numbers(text))
    return found


def table_of(path: Path) -> dict[str, Any]:
    """Read a table by column, without what may differ."""
    import pandas as pd

    parquet = path.suffix == ".parquet"
    # the text of a CSV, digit for digit
    table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str, na_filter=False)
    return {name: table[name].tolist() for name in table if not may_differ(str(name))}


def may_differ(name: str) -> bool:
    """Whether what has this name may differ between two runs of one version."""
    return any(part in name.lower() for part in DIFFERENT)


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give the leaves of a JSON document by their place, without what may differ."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not may_differ(key):
                yield from numbers(item, f"{name}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers(item, f"{name}[{i}]")
    else:
        yield name, value


def differences(old: Any, new: Any) -> list[str]:
    """Say what differs between two results of one name."""
    import numpy as np
    import xarray as xr

    if isinstance(old, xr.Dataset):
        names = sorted({*old.variables, *new.variables})
        return [
            str(name)
            for name in names
            if not may_differ(str(name))
            and (
                name not in old.variables
                or name not in new.variables
                or not np.array_equal(
                    old[name].values, new[name].values, equal_nan=old[name].dtype.kind == "f"
                )
            )
        ]
    if isinstance(old, dict):
        keys = sorted({*old, *new})
        return [key for key in keys if repr(old.get(key)) != repr(new.get(key))]
    raise TypeError(f"results of {type(old).__name__} cannot be compared")


def compare(old: Path, new: Path) -> int:
    """Print what differs; return the exit status."""
    first, second = contents(old), contents(new)
    found = [f"{name}: only in one" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        found += [f"{name}: {what}" for what in differences(first[name], second[name])]
    print("\n".join(found[:50]) or f"{len(first)} results are the same")
    return int(bool(found))


def main() -> int:
    """Make or compare."""
    options = argparse.ArgumentParser(description=__doc__)
    actions = options.add_subparsers(dest="action", required=True)
    actions.add_parser("make").add_argument("folder", type=Path)
    comparing = actions.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = options.parse_args()
    if given.action == "compare":
        return compare(given.old, given.new)
    make(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
