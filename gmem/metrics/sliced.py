"""The sliced Wasserstein distance between two sets of features (MIND)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.metrics.distances import blocks
from gmem.metrics.statistics import as_features

PROJECTIONS = 1024
_DIRECTIONS_AT_ONCE, _ROWS_AT_ONCE = 64, 8192  # 26 MB of projections of 50,000 samples, 134 MB of 2048 dimensions


def sliced_wasserstein(
    x: Tensor | NDArray, y: Tensor | NDArray, projections: int = PROJECTIONS, seed: int = 2020
) -> float:
    """Mean, over random directions u, of the squared 2-Wasserstein distance between x u [N] and y u [M], in float64.

    This is the sliced distance (Rabin et al., 2011) on features [N, D] and [M, D], as the Monge Inception Distance takes
    it to judge generators (Berthet et al., 2026, arXiv 2605.06797). It is our reading of that: whatever factor its
    authors put before it is not here, so compare it with numbers of this function alone. In particular

    - the directions are `projections` vectors of independent normal numbers, drawn from numpy's default generator with
      `seed`, made unit length; the same for every pair of sets of one dimension;
    - on a line the distance is the integral over q in [0, 1] of (X(q) - Y(q))^2, X and Y the quantile functions of the
      two sets. Both are steps, and the integral is exact for any N and M; for N = M it is the mean squared difference of
      the sorted numbers;
    - nothing is done against its bias: of few samples it comes out higher, as the Fréchet distance does but less;
    - a set moved by a vector d lies at |d|^2 / D from itself: times D it is on the Fréchet distance's scale.

    Raises ValueError on different dimensions, NaN or infinity, or no projections.
    """
    first = as_features(x, "The first features")
    second = as_features(y, "The second features")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared: use one detector for both."
        )
    if projections < 1:
        raise ValueError(f"A sliced distance needs at least one projection, not {projections}.")
    at_x, at_y, widths = _steps(len(first), len(second))
    total = 0.0
    for directions in _directions(first.shape[1], projections, seed):
        of_x = _sorted(first, directions)[:, at_x]
        of_y = _sorted(second, directions)[:, at_y]
        squares = (of_x - of_y).square_()
        total += float((squares @ widths).sum())
    return total / projections


def _directions(dim: int, count: int, seed: int) -> Iterator[Tensor]:
    """Unit vectors [P, D], a few at a time."""
    random = np.random.default_rng(seed)
    for part in blocks(count, _DIRECTIONS_AT_ONCE):
        shape = (part.stop - part.start, dim)
        rows = torch.from_numpy(random.standard_normal(shape))
        yield rows / rows.norm(dim=1, keepdim=True)


def _sorted(features: NDArray, directions: Tensor) -> Tensor:
    """The features [N, D] along each of the directions [P, D], rising, as [P, N]."""
    parts = []
    for rows in blocks(len(features), _ROWS_AT_ONCE):
        part = torch.from_numpy(features[rows]).double()
        parts.append(directions @ part.T)
    return torch.cat(parts, dim=1).sort(dim=1).values


def _steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where quantile functions of n and of m numbers are both constant: the place in each, and the width of the piece.

    In units of 1 / (n m) the pieces end at multiples of m and of n.
    """
    of_first = np.arange(1, n + 1) * m
    of_second = np.arange(1, m + 1) * n
    ends = np.union1d(of_first, of_second)
    widths = np.diff(ends, prepend=0) / (n * m)
    last = ends - 1
    return (
        torch.from_numpy(last // m),
        torch.from_numpy(last // n),
        torch.from_numpy(widths),
    )
