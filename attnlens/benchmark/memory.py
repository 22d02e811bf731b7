"""Peak memory of one way to generate, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def peak_memory(size: str, device: str, visual: int, new: int, way: str) -> dict[str, float]:
    """Run one way in a new process and return its peak memory.

    Parameters
    ----------
    size, device, visual, new
        As in ``attnlens.benchmark.recording.compare``.
    way
        ``plain``, ``recorded`` or ``eager``.

    Returns
    -------
    dict
        ``peak_mib``: the highest resident memory of the process on a CPU, or the highest allocated
        memory on a GPU, weights included; ``base_mib``: the same before generation.
    """
    arguments = json.dumps([size, device, visual, new, way])
    finished = subprocess.run(
        [sys.executable, "-m", "attnlens.benchmark.memory", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"measuring the memory of {way!r} failed: {finished.stderr[-2000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def _peak_mib(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _main(size: str, device: str, visual: int, new: int, way: str) -> None:
    import torch

    from attnlens.benchmark import recording
    from attnlens.benchmark.model import SHAPES, build, build_inputs

    shape = SHAPES[size]
    model: Any = build(shape, device)
    inputs, segments = build_inputs(visual, device, getattr(torch, shape.dtype))
    base = _peak_mib(device)
    recording._ways(model, inputs, segments, new)[way]()
    print(json.dumps({"peak_mib": _peak_mib(device), "base_mib": base}))


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
