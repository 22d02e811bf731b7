"""A trace of the shape of a 7B model, for what a page of it weighs and how fast it is."""

import numpy as np
import xarray as xr

from attnlens.recording.trace import Trace
from attnlens.segments import SEGMENTS


def large_trace(steps=1000, layers=28, heads=28, rows=26, columns=50, mapped=16, seed=0):
    """Return a synthetic trace with the maps of all layers and of some heads.

    Scores of visual tokens are a slowly moving focus, a few tokens that always get much (sinks),
    and noise that is drawn anew at every step and layer, so that nothing repeats.
    """
    random = np.random.default_rng(seed)
    count = rows * columns
    mass = np.exp(random.normal(0, 1.2, (steps, layers, heads, len(SEGMENTS)))).astype(np.float32)
    mass[..., SEGMENTS.index("sink")] *= 4
    mass[..., SEGMENTS.index("visual")] *= np.exp(-np.arange(steps) / 400)[:, None, None]
    mass[..., SEGMENTS.index("copied")] = 0
    mass /= mass.sum(-1, keepdims=True)
    visual = mass[..., SEGMENTS.index("visual")]
    y, x = np.divmod(np.arange(count), columns)
    angle = np.linspace(0, 12, steps)
    centre = rows / 2 + rows / 3 * np.sin(angle), columns / 2 + columns / 3 * np.cos(angle)
    far = (y - centre[0][:, None]) ** 2 + (x - centre[1][:, None]) ** 2
    sinks = np.where(random.random(count) < 0.005, 3.0, 0.0)

    def weights(total):
        score = 3 * np.exp(-far / 20) + sinks + random.normal(0, 1, (steps, count))
        found = np.exp(score - score.max(1, keepdims=True))
        return (found / found.sum(1, keepdims=True) * total[:, None]).astype(np.float32)

    by_layer = np.stack([weights(visual[:, layer].mean(1)) for layer in range(layers)], 1)
    pairs = [(i % layers, i * 5 % heads) for i in range(mapped)]
    by_head = np.stack([weights(visual[:, layer, head]) for layer, head in pairs], 1)
    keys = np.tile(np.array([1, 20, count, 1, 60, 0, 0], np.int32), (steps, 1))
    keys[:, SEGMENTS.index("response")] = np.arange(steps)
    words = [f" word{i % 97}" for i in range(steps)]
    words[0], words[steps // 3], words[steps // 2] = "<think>", "</think>", "<back>"
    words[3 * steps // 4] = "</back>"
    region = np.full(steps, "", dtype="<U8")
    data = xr.Dataset(
        {
            "mass": (("step", "layer", "head", "segment"), mass),
            "keys": (("step", "segment"), keys),
            "visual_nonzero": (("step", "layer"), np.full((steps, layers), count, np.int32)),
            "visual_map": (("step", "layer", "visual"), by_layer),
            "visual_map_by_head": (("step", "mapped", "visual"), by_head),
        },
        {
            "step": np.arange(steps),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "segment": list(SEGMENTS),
            "query_token": ("step", np.array(["\n", *words[:-1]])),
            "predicted_token": ("step", np.array(words)),
            "query_token_id": ("step", np.arange(steps)),
            "predicted_token_id": ("step", np.arange(steps) + 1),
            "region": ("step", region),
            "mapped_layer": ("mapped", np.array([layer for layer, _ in pairs])),
            "mapped_head": ("mapped", np.array([head for _, head in pairs])),
            "visual_image": ("visual", np.zeros(count, np.int64)),
            "visual_tile": ("visual", np.zeros(count, np.int64)),
            "visual_row": ("visual", y),
            "visual_column": ("visual", x),
        },
        {
            "model": "synthetic",
            "question": "What is in the picture?",
            "mode": "back",
            "images": [
                {
                    "path": None,
                    "sha256": "",
                    "width": columns * 28,
                    "height": rows * 28,
                    "rows": rows,
                    "columns": columns,
                    "min_pixels": None,
                    "max_pixels": None,
                }
            ],
        },
    )
    return Trace(data)
