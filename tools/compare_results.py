"""Make the same results with two versions of the package and compare them to the last digit.

``make DIR`` asks the testbed a few questions with every command that writes results. Run it with
both versions, on the same machine. ``compare OLD NEW`` then reads both folders with the current
version, which also shows that results of the older one still load. Numbers in tables must be the
same as printed, masses the same to the bit. Times, versions and paths may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
DIFFERENT = (
    "seconds",
    "traces",
    "time",
    "version",
    "sha",
    "path",
    "folder",
    "created",
    "torch",
    "package",
)
"""Results may differ if their name contains one of these."""
MOVED = {
    r"^trend/(\d+_\w+)/(\w+)_trace\.zarr$": r"trend/trend_runs/\2/\1/trace.zarr",
    r"^trend/(\d+_\w+)/summary\.json$": r"trend/trend/back/\1/summary.json",
    r"dilution_runs/(\d+_\w+)/(\w+)_trace\.zarr$": r"dilution_runs/\2/\1/trace.zarr",
    r"\.nc$": ".zarr",
}
"""Where version 0.2.0 kept a result, as a pattern, and where it is now."""


def make(folder: Path) -> None:
    """Run every command in a new folder."""
    folder.mkdir(parents=True)
    for command in COMMANDS.values():
        words = command.split()
        if "{question}" in words:
            lines = (folder / "scenes" / "questions.jsonl").read_text(encoding="utf-8")
            question = json.loads(lines.splitlines()[0])["question"]
            words[words.index("{question}")] = question
        print("attnlens", *words, flush=True)
        subprocess.run(
            [sys.executable, "-m", "attnlens", *words],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )


def contents(folder: Path) -> dict[str, Any]:
    """Read the results of a folder that can be compared, by file name."""
    import attnlens
    from attnlens.experiments.dependence import load_dependence
    from attnlens.experiments.recovery import Recovery
    from attnlens.recording.store import stored_kind

    readers: dict[str | None, Any] = {
        "attnlens-trace": lambda path: attnlens.Trace.load(path).data,
        "attnlens-recovery": lambda path: Recovery.load(path).data,
        "attnlens-dependence": load_dependence,
    }
    found: dict[str, Any] = {}
    for path in folder.rglob("*.zarr"):
        found[name_of(path, folder)] = readers[stored_kind(path)](path)
    for path in folder.rglob("*.nc"):
        kind = "recovery" if path.stem in ("recovery", "routes") else "dependence"
        found[name_of(path, folder)] = readers[f"attnlens-{kind}"](path)
    for path in [*folder.rglob("*.csv"), *folder.rglob("*.parquet")]:
        found[name_of(path, folder)] = table_of(path)
    for name in ("dilution.json", "summary.json"):
        for path in folder.rglob(name):
            text = json.loads(path.read_text(encoding="utf-8"))
            found[name_of(path, folder)] = dict(numbers(text))
    return found


def name_of(path: Path, folder: Path) -> str:
    """Name a result by where the version of today keeps it."""
    name = path.relative_to(folder).as_posix()
    for before, now in MOVED.items():
        name = re.sub(before, now, name)
    return name


def table_of(path: Path) -> dict[str, Any]:
    """Read a table by column, without columns that may differ."""
    import pandas as pd

    parquet = path.suffix == ".parquet"
    # a CSV as text, to compare it digit by digit
    table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str, na_filter=False)
    return {name: table[name].tolist() for name in table if not may_differ(str(name))}


def may_differ(name: str) -> bool:
    """Whether a result of this name may differ between two runs of one version."""
    return any(part in name.lower() for part in DIFFERENT)


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a JSON document with their paths, without those that may differ."""
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
    """List what differs between two results of the same name."""
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
    """Print what differs and return the exit status."""
    first, second = contents(old), contents(new)
    found = [f"{name}: only in one" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        found += [f"{name}: {what}" for what in differences(first[name], second[name])]
    print("\n".join(found[:50]) or f"{len(first)} results are the same")
    return int(bool(found))


def main() -> int:
    """Make or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("make").add_argument("folder", type=Path)
    comparing = actions.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.action == "compare":
        return compare(options.old, options.new)
    make(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
