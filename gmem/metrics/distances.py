"""Euclidean distances between two sets of features, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 as [N, M] for x [N, D] and y [M, D], by |x|^2 - 2 x.y + |y|^2, never below zero.

    The form cancels for close pairs far from the origin: centre the features first, and use float64 where it matters.
    """
    product = torch.addmm(y.square().sum(dim=1)[None, :], x, y.T, alpha=-2)
    return product.add_(x.square().sum(dim=1)[:, None]).clamp_(min=0)


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(length)."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
