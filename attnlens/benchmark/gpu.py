"""All that is asked of a card, in less than ten minutes: see ``attnlens bench --gpu``.

Every part runs in a process of its own and has so many seconds. One that fails, takes more memory
than there is or is not ready in time is noted with its reason, and the others go on.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attnlens._version import versions
from attnlens.benchmark.gpu_checks import LARGEST_ERROR, WAYS, check
from attnlens.benchmark.gpu_costs import overhead, replay_rate
from attnlens.benchmark.model import SHAPES, Shape
from attnlens.progress import progress
from attnlens.text import one_line, shortened

TOTAL_SECONDS = 570
"""When the last part ends at the latest."""
NO_CARD = "needs a card"
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Share:
    """How much is measured.

    Attributes
    ----------
    checked, checked_visual, new
        Shape (its dtype aside), visual tokens and new tokens of what is checked for being right.
    timed, visuals, timed_new, repeats
        Shape, visual tokens, generated tokens and timed runs of what recording costs.
    answer
        Tokens of the answer that is fed again, after the first of ``visuals``.
    left_out
        Numbers of visual tokens that a card is asked for, and this share is not.
    """

    checked: Shape
    checked_visual: int
    new: int
    timed: Shape
    visuals: tuple[int, ...]
    timed_new: int
    repeats: int
    answer: int
    left_out: tuple[int, ...] = ()


CARD = Share(
    Shape(3, 3584, 28, 4, 4096, 4096), 256, 40, SHAPES["7b"], (896, 8064, 32512), 65, 3, answer=256
)
# one layer of the 7B shape takes 0.9 GB in float32
CPU = Share(
    Shape(2, 512, 4, 2, 256, 2048),
    64,
    40,
    Shape(1, 3584, 28, 4, 18944, 2048),
    (64,),
    33,
    3,
    answer=64,
    left_out=CARD.visuals,
)
"""What needs no card: small models, one layer of the 7B shape, a short context."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes
    ----------
    name
        What it is called in the results.
    kind
        ``check``, ``overhead`` or ``replay``.
    arguments
        Of the function of that kind; see ``_main``.
    seconds
        How long it may take, with the start of its process.
    why_not
        Why it is left out; empty where it is not.
    """

    name: str
    kind: str
    arguments: dict[str, Any]
    seconds: int
    why_not: str = ""


def measure(device: str) -> dict[str, Any]:
    """Measure the share of a device.

    Parameters
    ----------
    device
        ``cpu``, or a card's.

    Returns
    -------
    dict
        ``card``: its name, None where there is none; ``machine`` and ``versions``; ``checks`` (rows
        of ``attnlens.benchmark.gpu_checks.check``), ``overhead`` and ``replay`` (rows of
        ``attnlens.benchmark.gpu_costs``), each with the seconds that its part took; ``left_out``:
        parts without a result, why, and whether they failed or were not tried; ``seconds``, of all;
        ``share``, what was measured.
    """
    begun = time.monotonic()
    share = CPU if device == "cpu" else CARD
    found: dict[str, list[dict[str, Any]]] = {"check": [], "overhead": [], "replay": []}
    left_out = []
    for part in progress(parts(share, device), description="parts"):
        left = TOTAL_SECONDS - (time.monotonic() - begun)
        started = time.monotonic()
        limit = min(part.seconds, left)
        why, rows = (part.why_not, []) if part.why_not else run_part(part, limit)
        if why:
            left_out.append({"part": part.name, "why": why, "failed": not part.why_not})
        taken = round(time.monotonic() - started, 1)
        found[part.kind] += [row | {"part_seconds": taken} for row in rows]
    return {
        "card": _card(device),
        "machine": _machine(device),
        "versions": versions() | _other_versions(),
        "largest_error": LARGEST_ERROR,
        "share": asdict(share),
        "checks": found["check"],
        "overhead": found["overhead"],
        "replay": found["replay"],
        "left_out": left_out,
        "seconds": round(time.monotonic() - begun, 1),
    }


def parts(share: Share, device: str) -> list[Part]:
    """List what is measured, the most wanted first: time may run out."""
    here = {"device": device}
    checked = here | {
        "shape": asdict(share.checked),
        "visual": share.checked_visual,
        "new": share.new,
    }
    timed = here | {"shape": asdict(share.timed), "repeats": share.repeats}

    def checking(way: str, dtype: str, seconds: int) -> Part:
        arguments = {"name": way, "dtype": dtype, **checked}
        return Part(f"{way}, {dtype}", "check", arguments, seconds, _why_not(way, device))

    def stepping(visual: int, seconds: int) -> Part:
        why = f"{NO_CARD}: a CPU takes too long" if visual in share.left_out else ""
        name = f"overhead with {visual:,} visual tokens"
        return Part(
            name, "overhead", timed | {"visual": visual, "new": share.timed_new}, seconds, why
        )

    first, *longer = (*share.visuals, *share.left_out)
    answer = timed | {"visual": first, "new": share.answer}
    return [
        checking("SDPA", "float32", 60),
        checking("SDPA", "bfloat16", 60),
        checking("FlashAttention", "bfloat16", 60),
        stepping(first, 120),
        Part("replay", "replay", answer, 120),
        *(stepping(visual, 120) for visual in longer),
        checking("CUDA graphs", "float32", 120),
        checking("flex attention", "float32", 120),
        checking("CUDA graphs", "bfloat16", 120),
        checking("flex attention", "bfloat16", 120),
        checking("static cache", "float32", 60),
        checking("compiled", "float32", 120),
        checking("compiled", "bfloat16", 120),
    ]


def _why_not(way: str, device: str) -> str:
    """Say why a way cannot be tried here; empty where it can."""
    if way == "CUDA graphs" and device == "cpu":
        return NO_CARD
    if WAYS[way].attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if device == "cpu":
            return NO_CARD
        if not is_flash_attn_2_available():
            return "flash-attn is not installed"
    return ""


def run_part(part: Part, seconds: float) -> tuple[str, list[dict[str, Any]]]:
    """Run a part in a process of its own: why it has no result, or its rows."""
    if seconds <= 0:
        return f"the parts before it took all of {TOTAL_SECONDS} seconds", []
    asked = json.dumps([part.kind, part.arguments])
    command = [sys.executable, "-m", "attnlens.benchmark.gpu", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not ready in {seconds:.0f} seconds", []
    if done.returncode < 0:  # as the system does when memory is short
        return f"ended by signal {-done.returncode}", []
    if done.returncode:
        raised = [
            line for line in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Exit)", line)
        ]
        last = raised or done.stderr.strip().splitlines() or ["it failed without a message"]
        return shortened(one_line(last[-1]), 300), []
    return "", json.loads(done.stdout.strip().splitlines()[-1])


def _card(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def _machine(device: str) -> dict[str, Any]:
    import torch

    names = re.findall(r"^model name\s*: (.+)$", _read(_CPU_INFO), re.MULTILINE)
    machine: dict[str, Any] = {
        "cpu": names[0] if names else platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        machine["card_memory_mib"] = found.total_memory // 2**20
        machine["compute_capability"] = f"{found.major}.{found.minor}"
    return machine


def _other_versions() -> dict[str, str | None]:
    import torch

    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("triton", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _main(kind: str, arguments: dict[str, Any]) -> None:
    kinds: dict[str, Callable] = {"check": check, "overhead": overhead, "replay": replay_rate}
    measured = kinds[kind](**arguments | {"shape": Shape(**arguments["shape"])})
    print(json.dumps(measured if isinstance(measured, list) else [measured]))


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
