"""The Vendi score: how many different pictures a set is worth."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.distances import blocks
from gmem.metrics.statistics import as_features
from gmem.threads import one_thread

_ROWS_AT_ONCE = 8192  # 134 MB in float64 at 2048 dimensions


def vendi_score(features: Tensor | NDArray) -> float:
    """exp(-sum of l log l) over the eigenvalues l of K / N, K the cosines between features [N, D] (Friedman and Dieng,
    2022), in float64: 1 of equal directions, N of N orthogonal ones.

    It rises with N: compare sets of one size. With X the rows of unit length, K = X X^T [N, N] and X^T X [D, D] have the
    same eigenvalues beside zeros, which add nothing: the smaller of the two is taken.

    Raises ValueError on NaN or infinity, or a feature of length zero, which has no direction.
    """
    rows = as_features(features)
    gram = _kernel(rows) if len(rows) <= rows.shape[1] else _covariance(rows)
    with one_thread():  # as for the Fréchet distance: LAPACK's reduction waits for memory
        eigenvalues = torch.linalg.eigvalsh(gram / len(rows))
    shares = eigenvalues[eigenvalues > 0]  # rounding leaves some zeros at -1e-17
    return float(torch.exp(-(shares * shares.log()).sum()))


def _kernel(rows: NDArray) -> Tensor:
    x = _directions(rows)
    return x @ x.T


def _covariance(rows: NDArray) -> Tensor:
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in blocks(len(rows), _ROWS_AT_ONCE):
        x = _directions(rows[part])
        total.addmm_(x.T, x)
    return total


def _directions(rows: NDArray) -> Tensor:
    x = torch.from_numpy(rows).double()
    lengths = x.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise InputError("A feature of length zero has no direction: look at the network that made it.")
    return x / lengths
