"""Muon: momentum whose update is made orthogonal, for matrices within a network.

The orthogonal factor of the update is approached by Newton-Schulz steps of the quintic
X <- a X + (b A + c A A) X, A = X X^T; its coefficients make small singular values grow fast and leave them
between about 0.7 and 1.2 (K. Jordan et al., "Muon", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Scale = Callable[[int, int], float]
"""Factor of an orthogonal update of so many rows and columns."""


def spectral(rows: int, columns: int) -> float:
    """As Jordan scales it: what the update does to a vector is about as large whatever the shape."""
    return max(1.0, rows / columns) ** 0.5


def as_adam(rows: int, columns: int) -> float:
    """The entries are about as large as those of Adam's updates, so that a learning rate serves both (J. Liu et al.,
    "Muon is scalable for LLM training", 2025, arXiv 2502.16982)."""
    return 0.2 * max(rows, columns) ** 0.5


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions, which are flattened to two.

    On the small convolutions of a tokenizer it needs about half the steps of Adam. torch's own takes matrices alone and
    multiplies in bf16, and timm's scales the momentum: with neither do checkpoints go on to the same weights.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        scale: Scale = spectral,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _move(
        self,
        p: nn.Parameter,
        gradient: Tensor,
        lr: float,
        inertia: float,
        weight_decay: float,
    ) -> None:
        memory = self.state[p]
        if MOMENTUM not in memory:
            memory[MOMENTUM] = torch.zeros_like(p)
        momentum = memory[MOMENTUM]
        momentum.mul_(inertia).add_(gradient)
        update = gradient.add(momentum, alpha=inertia).flatten(1)
        rows, columns = update.shape
        p.mul_(1 - lr * weight_decay)
        p.add_(orthogonal(update).view_as(p), alpha=-lr * self.scale(rows, columns))


MOMENTUM = "momentum"
"""What Muon remembers of a parameter."""


def orthogonal(matrix: Tensor, rounds: int = 4) -> Tensor:
    """Approximately U V^T of a matrix U S V^T [m, n], by Newton-Schulz."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        gram = x @ x.T
        polynomial = -4.775 * gram + 2.0315 * gram @ gram
        x = 3.4445 * x + polynomial @ x
    return x.T if tall else x
