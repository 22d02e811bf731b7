"""Peak memory of one variant of generation, in a separate process."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnlens.benchmark.model import Shape

WARM_UP = (4, 2)
"""Visual and new tokens of the generation that loads code and libraries before measuring."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_OVER = 86
"""Exit status of a process that took more memory than it may."""
_NO_MEMORY = ("OutOfMemoryError", "can't allocate memory", "MemoryError")
"""What torch and Python call it, on a GPU and on a CPU."""
_PAUSE = 0.01
"""Seconds between two looks at the memory."""


class OverLimit(Exception):
    """A variant took more memory than it may."""


def peak_memory(
    shape: Shape,
    device: str,
    visual: int,
    new: int,
    variant: str,
    limit_mib: float | None = None,
) -> dict[str, float]:
    """Run one of ``attnlens.benchmark.variants`` in a new process; return its peak memory.

    Building the model and a short generation come first and do not count. ``peak_mib`` is the
    highest resident memory of the process during generation on a CPU, or the highest allocated
    memory on a GPU, weights included; ``base_mib`` what was held right before it; ``rise_mib`` the
    difference. Where the system does not let a process reset its peak, ``peak_mib`` is that of the
    whole run. A process that fails raises ``RuntimeError``, and one that takes more than
    ``limit_mib``, or than the system has, is ended and raises ``OverLimit``.
    """
    arguments = json.dumps([asdict(shape), device, visual, new, variant, limit_mib])
    finished = subprocess.run(
        [sys.executable, "-m", "attnlens.benchmark.memory", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    killed = finished.returncode == -signal.SIGKILL  # as the system does when memory is short
    refused = any(name in finished.stderr for name in _NO_MEMORY)
    if finished.returncode == _OVER or (limit_mib and (killed or refused)):
        raise OverLimit(f"{variant} takes more than {limit_mib:,.0f} MiB")
    if finished.returncode:
        raise RuntimeError(f"measuring the memory of {variant!r} failed: {finished.stderr[-2000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def reset_peak(device: str) -> float:
    """Forget the highest memory so far, and return what is held now, in MiB.

    On a CPU under Linux the kernel's high-water mark is reset; elsewhere nothing is, and the
    highest so far is returned.
    """
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return peak_mib(device)
    return _status_mib("VmRSS") or peak_mib(device)


def peak_mib(device: str) -> float:
    """Return the highest memory since ``reset_peak``, in MiB.

    On a CPU the highest resident memory: the kernel's high-water mark (``VmHWM``) under Linux, else
    ``ru_maxrss``, which under Linux a process inherits from the one that started it.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if (mark := _status_mib("VmHWM")) is not None:
        return mark
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _status_mib(name: str) -> float | None:
    """Read a line of ``/proc/self/status``; None if there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 2**10 if found else None


def _end_above(limit_mib: float, device: str) -> None:
    """End this process as soon as it takes more than a limit."""
    if device.startswith("cuda"):
        import torch

        whole = torch.cuda.get_device_properties(device).total_memory / 2**20
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mib / whole), device)
        return

    def watch() -> None:
        while (_status_mib("VmRSS") or peak_mib(device)) <= limit_mib:
            time.sleep(_PAUSE)
        os._exit(_OVER)

    threading.Thread(target=watch, daemon=True).start()


def _main(
    shape_fields: dict[str, Any],
    device: str,
    visual: int,
    new: int,
    variant: str,
    limit_mib: float | None,
) -> None:
    from attnlens.benchmark.model import Shape, build
    from attnlens.benchmark.variants import variant_calls

    vlm, prompt_of = build(Shape(**shape_fields), device)
    variant_calls(vlm, prompt_of(WARM_UP[0]), WARM_UP[1])[variant]()
    call = variant_calls(vlm, prompt_of(visual), new)[variant]
    if limit_mib is not None:
        _end_above(limit_mib, device)
    base = reset_peak(device)
    call()
    peak = peak_mib(device)
    print(json.dumps({"peak_mib": peak, "base_mib": base, "rise_mib": peak - base}))


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
