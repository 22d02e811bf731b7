"""Whether recording is right on a device: tokens, and mass by two computations of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from attnlens.benchmark.model import Shape, build, visual_tokens
from attnlens.benchmark.variants import Seen, eager_mass, generate
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.models.small import spread
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.record import record
from attnlens.recording.tap import AttentionOnly, LayerAttention, Pass, attach, detach

LARGEST_ERROR = 1e-5
"""Of a fraction of attention mass."""


@dataclass(frozen=True)
class Way:
    """A way of generating that recording must leave as it is.

    Attributes
    ----------
    attention
        Attention implementation of the text model.
    family
        As in ``attnlens.benchmark.model.Shape``.
    options
        Options of ``generate``.
    compile_mode
        Mode of ``torch.compile`` for decoding; None leaves it uncompiled.
    """

    attention: str = "sdpa"
    family: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    compile_mode: str | None = None


_STATIC = {"cache_implementation": "static"}
WAYS = {
    "SDPA": Way(),
    "FlashAttention": Way("flash_attention_2"),
    # transformers 5.23 offers flex attention for LLaVA's text model, and for no Qwen-VL
    "flex attention": Way("flex_attention", "llava"),
    "static cache": Way(options=_STATIC | {"disable_compile": True}),
    "compiled": Way(options=_STATIC, compile_mode="default"),
    "CUDA graphs": Way(options=_STATIC, compile_mode="reduce-overhead"),
}
"""What is checked, by name."""


def check(
    name: str, dtype: str, shape: Shape, *, device: str, visual: int, new: int
) -> dict[str, Any]:
    """Generate twice, plainly and recorded, and compare.

    Weights are random, and so large that attention is far from uniform.

    Parameters
    ----------
    name
        One of ``WAYS``.
    dtype, shape, device
        Of the model; the way says which family it is.
    visual, new
        Visual tokens, at least, and generated tokens.

    Returns
    -------
    dict
        ``same_tokens``: whether the recorded run gave the tokens of the plain one; ``tokens`` and
        ``different_tokens``: how many there were, and how many different ones among them.
        ``error_own``: largest difference of the visual mass of a step, layer and head from a
        softmax in float32 of the very queries and keys that the recorded run used, computed while
        they were used. ``error_eager``: the same from one eager pass over the tokens in float32 on
        the same weights; of a model in half precision it is what this precision does, and not an
        error of recording. ``graphs`` (where decoding is compiled) and ``graph_launches`` (of CUDA
        graphs, where the mode captures them): counted in the plain and in the recorded run.
        ``right``: whether tokens are the same, errors at most ``LARGEST_ERROR`` (of float32 both,
        else ``error_own``), and whatever was to be compiled or launched was.
    """
    way = WAYS[name]
    vlm, prompt_of = build(replace(shape, family=way.family, dtype=dtype), device)
    if not way.family:  # a small model of a family is spread already
        spread(vlm.model, shape.width)
    prompt = prompt_of(visual)
    exact = replace(vlm, model=copy.deepcopy(vlm.model).float())
    vlm.model.set_attn_implementation({"text_config": way.attention})
    options = dict(way.options)
    if way.compile_mode is not None:
        options["compile_config"] = _compile_config(way.compile_mode)
    compiled_before = _compiled_graphs()
    plain = _new_tokens(vlm, prompt, new, options)
    compiled_plain = _compiled_graphs()
    recorded, own = _recorded(vlm, prompt, new, options)
    compiled_recorded = _compiled_graphs()
    eager = eager_mass(exact, _in_float32(prompt), recorded.tokens)
    row: dict[str, Any] = {
        "way": name,
        "dtype": dtype,
        "family": way.family or "qwen2_5_vl",
        "attention": way.attention,
        "layers": shape.layers,
        "width": shape.width,
        "visual": visual_tokens(prompt),
        "tokens": new,
        "different_tokens": len(plain.unique()),
        "same_tokens": bool(torch.equal(recorded.tokens, plain)),
        "error_own": float(np.abs(recorded.mass - own).max()),
        "error_eager": float(np.abs(recorded.mass - eager).max()),
    }
    compared = ["error_own", *(["error_eager"] if dtype == "float32" else [])]
    right = row["same_tokens"] and all(row[one] <= LARGEST_ERROR for one in compared)
    if way.compile_mode is not None:
        row["graphs"] = [compiled_plain - compiled_before, compiled_recorded - compiled_plain]
        right = right and all(row["graphs"])
    if name == "CUDA graphs":
        row["graph_launches"] = [
            _graph_launches(lambda: _new_tokens(vlm, prompt, new, options)),
            _graph_launches(lambda: _recorded(vlm, prompt, new, options)),
        ]
        right = right and all(row["graph_launches"])
    return row | {"right": right}


def _new_tokens(vlm: VLM, prompt: Prompt, new: int, options: dict[str, Any]) -> torch.Tensor:
    return generate(vlm.model, prompt.inputs, new, **options)[0, len(prompt.segments) :].cpu()


def _recorded(
    vlm: VLM, prompt: Prompt, new: int, options: dict[str, Any]
) -> tuple[Seen, np.ndarray]:
    """Return what recording gives, and the mass by ``_OwnMass``, [steps, layers, heads]."""
    with record(vlm, prompt, visual_map=False) as recorder, _own_mass(vlm, prompt) as own:
        tokens = _new_tokens(vlm, prompt, new, options)
    return Seen(tokens, recorder.trace.data["mass"].sel(segment="visual").values), own.mass()


class _OwnMass(AttentionOnly):
    """Visual mass of the last row of every pass, computed as it is used.

    Its own way: key heads are repeated, the softmax is over the keys up to the row's own, and
    nothing waits.
    """

    def __init__(self, visual: torch.Tensor) -> None:
        super().__init__(self._see)
        self._visual = visual
        self._keys = 0
        self._passes: list[list[torch.Tensor]] = []

    def begin_pass(self, begun: Pass) -> None:
        """Note how many keys the last row sees."""
        self._keys = begun.past + begun.tokens
        self._passes.append([])

    def _see(self, seen: LayerAttention) -> None:
        key = seen.key[0, :, : self._keys].float()
        key = key.repeat_interleave(seen.query.shape[1] // key.shape[0], 0)
        scores = (key @ seen.query[0, :, -1, :, None].float())[..., 0] * seen.scaling
        weights = torch.softmax(scores, dim=-1)[:, : len(self._visual)]
        self._passes[-1].append(weights[:, self._visual].sum(-1).cpu())

    def mass(self) -> np.ndarray:
        """Return it as [steps, layers, heads]."""
        return torch.stack([torch.stack(layers) for layers in self._passes]).numpy()


@contextmanager
def _own_mass(vlm: VLM, prompt: Prompt) -> Iterator[_OwnMass]:
    parts = vlm.family.parts(vlm.model)
    visual = torch.from_numpy(prompt.segments == "visual").to(vlm.model.device)
    listener = _OwnMass(visual)
    attach(parts, listener, GenerateWatch(len(prompt.segments)))
    try:
        yield listener
    finally:
        detach(parts, listener)


def _in_float32(prompt: Prompt) -> Prompt:
    inputs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in prompt.inputs.items()
    }
    return replace(prompt, inputs=inputs)


def _compile_config(mode: str) -> Any:
    from transformers import CompileConfig

    config = CompileConfig(mode=mode)
    config._compile_all_devices = True  # generate compiles on a CPU only if told to
    return config


def _compiled_graphs() -> int:
    """Count the graphs that were compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _graph_launches(call: Any) -> int:
    """Count the CUDA graphs that are launched in a call."""
    with torch.profiler.profile() as profiler:
        call()
    events = profiler.key_averages()
    return sum(event.count for event in events if event.key == "cudaGraphLaunch")
