"""Mean and covariance of features, gathered in float64 and merged across workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError

Array = NDArray[np.float64]
_ROWS_AT_ONCE = 8192  # bounds the float64 copy of a large batch: 134 MB at 2048 dimensions


def as_features(features: Tensor | NDArray, name: str = "features") -> NDArray:
    """Checks features [N, D] at the border and gives them as a numpy array of floats, sharing memory where possible.

    Raises ValueError where they are not two-dimensional, not floating, empty, or hold NaN or infinity.
    """
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise ValueError(f"{name} must be a non-empty table [samples, dimensions], not of shape {tuple(tensor.shape)}.")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating-point numbers, not {tensor.dtype}.")
    bad = int((~torch.isfinite(tensor)).any(dim=1).sum())
    if bad:
        raise InputError(
            f"{name} hold NaN or infinity in {bad} of {len(tensor)} rows: look at the network that made them."
        )
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()


@dataclass(frozen=True)
class Gaussian:
    """Mean [D], covariance [D, D] (divisor N - 1) and, where known, the number of samples behind them."""

    mean: Array
    cov: Array
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.cov.shape != (len(self.mean), len(self.mean)):
            raise InputError(
                f"A covariance of shape {self.cov.shape} does not belong to a mean of shape {self.mean.shape}: "
                "give mean [D] and covariance [D, D]."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise InputError("The statistics hold NaN or infinity: compute them again from finite features.")
        scale = float(np.abs(self.cov).max(initial=0.0))
        if np.abs(self.cov - self.cov.T).max(initial=0.0) > 1e-5 * scale or self.cov.diagonal().min(initial=0.0) < 0:
            raise InputError(
                "The matrix is no covariance (not symmetric, or a negative variance): is the file foreign?"
            )
        if self.count is not None and self.count < 2:
            raise InputError(f"A covariance needs at least 2 samples, and there is {self.count}: add samples.")

    @property
    def dim(self) -> int:
        return len(self.mean)


class GaussianStatistics:
    """Running count, mean [D] and scatter [D, D] (sum of outer products around the mean), all in float64.

    Batches and the sums of other workers are joined by the pairwise formula of Chan, Golub and LeVeque (1979), which
    does not cancel as raw sums of products do, so the result is the same however the samples were spread, to about
    1e-13 relative. Features wait as they are until there are as many as dimensions: a worker's few travel as themselves,
    not as a scatter many times their size.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"Features need at least one dimension, not {dim}.")
        self._count = 0
        self._mean: Array = np.zeros(dim)
        self._scatter: Array | None = None
        self._waiting: list[NDArray] = []

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def count(self) -> int:
        return self._count + sum(len(rows) for rows in self._waiting)

    @property
    def mean(self) -> Array:
        self._fold()
        return self._mean

    @property
    def scatter(self) -> Array:
        return self._fold()

    def update(self, features: Tensor | NDArray) -> None:
        """Adds features [N, D] of any floating type. Raises ValueError on another dimension, NaN or infinity."""
        rows = as_features(features)
        self._check_dim(rows.shape[1])
        self.hold(rows.copy())

    def hold(self, rows: NDArray) -> None:
        """Adds checked features [N, D] that nobody writes to any more."""
        self._waiting.append(rows)
        if sum(len(each) for each in self._waiting) >= self.dim:
            self._fold()

    def merge(self, other: GaussianStatistics) -> None:
        """Adds the samples of another worker. Raises ValueError on another dimension."""
        self._check_dim(other.dim)
        if other._count:
            assert other._scatter is not None, "made with the first samples"
            scatter, total = self._fold(), self._count + other._count
            step = other._mean - self._mean
            scatter += other._scatter + np.outer(step, step * (self._count * other._count / total))
            self._mean = self._mean + step * (other._count / total)
            self._count = total
        for rows in other._waiting:
            self.hold(rows)

    @property
    def cov(self) -> Array:
        """Covariance [D, D] with divisor N - 1. Raises ValueError below two samples."""
        if self.count < 2:
            raise InputError(f"A covariance needs at least 2 samples, and there is {self.count}: add samples.")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """The mean and covariance so far. Raises ValueError below two samples."""
        return Gaussian(self.mean.copy(), self.cov, self.count)

    def state(self) -> dict[str, NDArray]:
        """Arrays to send or store: count, mean [D], scatter [D, D]."""
        return {"count": np.asarray(self.count, dtype=np.int64), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray]) -> GaussianStatistics:
        """The inverse of `state`. Raises ValueError where an array is missing or of the wrong shape."""
        if not {"count", "mean", "scatter"} <= set(state):
            raise InputError(f"Running statistics need count, mean and scatter, not {sorted(state)}.")
        statistics = cls(len(state["mean"]))
        statistics._count = int(np.ravel(state["count"])[0])  # safetensors may give [1] for a scalar
        statistics._mean = np.array(state["mean"], dtype=np.float64)
        statistics._scatter = np.array(state["scatter"], dtype=np.float64)
        if statistics._scatter.shape != (statistics.dim, statistics.dim):
            raise InputError(
                f"A scatter of shape {statistics._scatter.shape} does not fit {statistics.dim} dimensions."
            )
        return statistics

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise ValueError(
                f"Features of {dim} dimensions do not belong to statistics of {self.dim}: use one detector."
            )

    def _fold(self) -> Array:
        """Takes what waits into the sums, and gives the scatter."""
        if self._scatter is None:
            self._scatter = np.zeros((self.dim, self.dim))
        self._scatter = np.require(self._scatter, requirements="W")  # which one from a shared store is not
        if self._waiting:
            rows, self._waiting = np.concatenate(self._waiting), []
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                self._add(self._scatter, rows[start : start + _ROWS_AT_ONCE].astype(np.float64))
        return self._scatter

    def _add(self, scatter: Array, rows: Array) -> None:
        """One pairwise step; the correction for the moved mean rides along as one more row of the product."""
        total = self._count + len(rows)
        batch_mean = rows.mean(axis=0)
        step = batch_mean - self._mean
        moved = step * np.sqrt(self._count * len(rows) / total)
        centred = torch.from_numpy(np.vstack([rows - batch_mean, moved]))
        torch.from_numpy(scatter).addmm_(centred.T, centred)
        self._mean = self._mean + step * (len(rows) / total)
        self._count = total
