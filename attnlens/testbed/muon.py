"""Muon in float32: orthogonalised momentum for weight matrices.

``torch.optim.Muon`` computes in bfloat16, which a CPU without bfloat16 arithmetic emulates: for
this model on two such cores its step took 1.4 s, beside 1.0 s for the batch itself. Here the
matrices of one shape go through together, in float32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, as published with Muon."""


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices near 1, and keep their singular vectors.

    Parameters
    ----------
    matrices
        float32 [matrices, rows, columns].
    iterations
        Newton-Schulz iterations; five leave singular values of about 0.7 to 1.2.

    Returns
    -------
    torch.Tensor, same shape
        ``U S V^T`` with every ``S`` near 1, where ``U D V^T`` was given. See Jordan et al. 2024,
        "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and AdamW's step size.

    An update has the root mean square that AdamW's typically has: the orthogonalised matrix times
    ``0.2 sqrt(max(rows, columns))`` (arXiv 2502.16982, section 2.2). Weight decay is decoupled.

    Parameters
    ----------
    parameters
        Matrices, or groups of them.
    lr
        Learning rate.
    momentum
        Share of the old average in the new one.
    weight_decay
        Part of a weight that is taken off per step, in parts of the learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, alike in of_shape.items():
                updates = orthogonalise(
                    torch.stack([self._momentum(p, group["momentum"]) for p in alike])
                )
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, update in zip(alike, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=rate)

    def _momentum(self, parameter: torch.nn.Parameter, share: float) -> torch.Tensor:
        """Average the gradient into the parameter's momentum; Nesterov's look ahead of it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - share)
        return parameter.grad.lerp(average, share)
