"""The kernel distance (KID): unbiased squared maximum mean discrepancy under a cubic kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.statistics import as_features


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets, its standard error, and the deviation between subsets (which others report as the error)."""

    value: float
    standard_error: float | None
    deviation: float
    subset: int
    subsets: int


def kernel_distance(
    x: Tensor | NDArray, y: Tensor | NDArray, subset: int | None = None, subsets: int = 100, seed: int = 2020
) -> KernelDistance:
    """KID of features [N, D] and [M, D] with k(a, b) = (a.b / D + 1)^3 (Binkowski et al., 2018), in float64.

    `subset` samples are drawn from each side without replacement, `subsets` times, in torch-fidelity's order of draws,
    so that equal seeds give its numbers; left out, it is 1000 or half of the smaller side.

    Standard error: subsets overlap, so deviation / sqrt(subsets) is too small. For a mean of m out of N drawn without
    replacement the deviation is that of N samples times sqrt((N - m) / m); undone, and with the error of a finite
    number of draws added, this gives deviation * sqrt(m / (N - m) + 1 / subsets), and None where m = N.

    Raises ValueError on different dimensions, NaN or infinity, fewer samples than asked, or a subset below 2.
    """
    first, second = as_features(x, "The first features"), as_features(y, "The second features")
    smaller = min(len(first), len(second))
    size = min(1000, smaller // 2) if subset is None else subset
    _check(first, second, size, subsets)
    random = np.random.RandomState(seed)
    draws = np.array(
        [
            _unbiased_mmd(
                first[random.choice(len(first), size, replace=False)],
                second[random.choice(len(second), size, replace=False)],
            )
            for _ in range(subsets)
        ]
    )
    error = None
    if size < smaller and subsets > 1:
        error = float(draws.std(ddof=1) * np.sqrt(size / (smaller - size) + 1 / subsets))
    return KernelDistance(float(draws.mean()), error, float(draws.std()), size, subsets)


def _check(first: NDArray, second: NDArray, subset: int, subsets: int) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared: use one detector for both."
        )
    if subset < 2 or subsets < 1:
        raise InputError(
            f"The kernel distance needs a subset of at least 2 and one subset, not {subset} and {subsets}: add samples."
        )
    if min(len(first), len(second)) < subset:
        raise InputError(f"A subset of {subset} asks for more samples than there are ({len(first)} and {len(second)}).")


def _unbiased_mmd(x: NDArray, y: NDArray) -> float:
    """The U-statistic for kernels within a side, the full mean across sides; x and y are [m, D]."""
    a, b = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    m = len(a)
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (_cubic(a, a), _cubic(b, b)))
    return within / (m * (m - 1)) - 2 * float(_cubic(a, b).mean())


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
