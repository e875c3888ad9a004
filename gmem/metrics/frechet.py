"""The Fréchet distance between two Gaussians (FID, sFID, FD on any encoder)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.statistics import Array, GaussianStatistics, as_features
from gmem.threads import one_thread

_EPS = float(np.finfo(np.float64).eps)
_SAME = 1e-9  # of the reference's variance: far above what rounding leaves, far below what other pictures do


class Moments(Protocol):
    """What the distance needs: `Gaussian` and `GaussianStatistics` both have it."""

    @property
    def mean(self) -> Array: ...
    @property
    def cov(self) -> Array: ...
    @property
    def count(self) -> int | None: ...


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64 (Dowson and Landau, 1982).

    C_a C_b is not symmetric, but with a factor C_a = F F^T it has the eigenvalues of the symmetric F^T C_b F, which
    are real and not negative: no complex square root, no jitter on the diagonal, finite for any rank. The factor is
    taken of the covariance of lower rank, so few samples make it cheaper and more exact.

    Raises ValueError on different dimensions, NaN or infinity, or fewer than two samples.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, dtype=np.float64) for x in (a.mean, a.cov, b.mean, b.cov))
    if mean_a.shape != mean_b.shape:
        raise InputError(
            f"Statistics of {len(mean_a)} and {len(mean_b)} dimensions cannot be compared: use one detector for both."
        )
    if not all(np.isfinite(x).all() for x in (mean_a, cov_a, mean_b, cov_b)):
        raise InputError("The statistics hold NaN or infinity: compute them again from finite features.")
    dim = len(mean_a)
    if _rank_bound(b, dim) < _rank_bound(a, dim):
        cov_a, cov_b = cov_b, cov_a
    lower_rank = min(_rank_bound(a, dim), _rank_bound(b, dim))
    factor = _factor(torch.from_numpy(cov_a), full_rank=lower_rank == dim)
    cross = _trace_root(factor.T @ torch.from_numpy(cov_b) @ factor)
    traces = float(np.trace(cov_a) + np.trace(cov_b))
    return _assemble(mean_a - mean_b, traces, cross)


def frechet_distance_of_features(x: Tensor | NDArray, y: Tensor | NDArray) -> float:
    """The same distance straight from features [N, D] and [M, D].

    With X, Y the centred features over sqrt(N - 1), the trace of the root is the sum of the singular values of X Y^T,
    an N by M matrix: for fewer samples than dimensions no D by D matrix is ever made.
    """
    mean_x, centred_x = _centred(x, "The first features")
    mean_y, centred_y = _centred(y, "The second features")
    if mean_x.shape != mean_y.shape:
        raise InputError(
            f"Features of {len(mean_x)} and {len(mean_y)} dimensions cannot be compared: use one detector for both."
        )
    product = _reduced(centred_x) @ _reduced(centred_y).T
    # The reduction to tridiagonal form waits for memory and synchronises at each of its D columns: at 2048 dimensions
    # one thread takes 0.44 s, and two take 1.7 s of processor time, and several times as long beside another job.
    with one_thread():
        cross = float(torch.linalg.svdvals(product).sum())
    traces = float(centred_x.square().sum() + centred_y.square().sum())
    return _assemble((mean_x - mean_y).numpy(), traces, cross)


@dataclass(frozen=True)
class FrechetRatio:
    """`value` = distance / real_distance; both are of `count` pictures against the same reference."""

    value: float
    distance: float
    real_distance: float
    count: int


def frechet_ratio(
    samples: Tensor | NDArray, real: Tensor | NDArray, reference: Moments, seed: int = 2020
) -> FrechetRatio | None:
    """FDr: the distance of samples [N, D] to the reference, over that of other real pictures [M, D] to it.

    1 is as good as real pictures, whatever the detector's scale and the reference's size. The distance of few pictures
    comes out too high, so both are of equally many: where N and M differ, as many of the more are drawn by `seed`.
    None where the real pictures are the reference's own, so that nothing but rounding lies between.

    Raises ValueError on different dimensions, NaN or infinity, or fewer than two of either.
    """
    drawn = [as_features(samples, "The samples' features"), as_features(real, "The real pictures' features")]
    count = min(len(rows) for rows in drawn)
    distance, real_distance = (frechet_distance(_moments(_some(rows, count, seed)), reference) for rows in drawn)
    if real_distance <= _SAME * float(np.trace(reference.cov)):
        return None
    return FrechetRatio(distance / real_distance, distance, real_distance, count)


def _some(rows: NDArray, count: int, seed: int) -> NDArray:
    """So many of the rows, in their order: the first ones may be of one kind."""
    if count == len(rows):
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[np.sort(chosen)]


def _moments(rows: NDArray) -> GaussianStatistics:
    statistics = GaussianStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics


def _centred(features: Tensor | NDArray, name: str) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(as_features(features, name)).double()
    if len(rows) < 2:
        raise InputError(f"{name} need at least 2 samples, and there is {len(rows)}: add samples.")
    mean = rows.mean(dim=0)
    return mean, (rows - mean) / (len(rows) - 1) ** 0.5


def _reduced(rows: Tensor) -> Tensor:
    """With more samples than dimensions the triangle of a QR decomposition has the same Gram matrix, and is smaller."""
    if len(rows) <= rows.shape[1]:
        return rows
    return torch.linalg.qr(rows, mode="r").R


def _assemble(step: Array, traces: float, cross: float) -> float:
    distance = float(step @ step) + traces - 2 * cross
    return max(distance, 0.0)  # rounding may leave -1e-12 between equal Gaussians


def _rank_bound(moments: Moments, dim: int) -> int:
    return dim if moments.count is None else min(dim, moments.count - 1)


def _factor(cov: Tensor, full_rank: bool) -> Tensor:
    """F [D, r] with cov = F F^T: Cholesky where the matrix is positive definite, else pivoted and cut at its rank."""
    if full_rank:
        factor, failed = torch.linalg.cholesky_ex(cov)
        pivots = factor.diagonal()
        if not failed and float(pivots.min()) ** 2 > len(cov) * _EPS * float(pivots.max()) ** 2:
            return factor
    from scipy.linalg.lapack import dpstrf

    packed, pivot, rank, _ = dpstrf(cov.numpy(), lower=1)
    factor = torch.zeros(len(cov), rank, dtype=torch.float64)
    factor[torch.from_numpy(pivot.astype(np.int64)) - 1] = torch.from_numpy(np.tril(packed)[:, :rank].copy())
    return factor


def _trace_root(matrix: Tensor) -> float:
    """Sum of the square roots of the eigenvalues of a positive semi-definite matrix; rounding below zero counts 0."""
    # The reduction to tridiagonal form waits for memory and synchronises at each of its D columns: at 2048 dimensions
    # one thread takes 0.44 s, and two take 1.7 s of processor time, and several times as long beside another job.
    with one_thread():
        eigenvalues = torch.linalg.eigvalsh(matrix)  # reads one triangle, so rounding in the other does not matter
    floor = _EPS * float(eigenvalues.max()) if len(eigenvalues) else 0.0
    return float(eigenvalues[eigenvalues > floor].sqrt().sum())
