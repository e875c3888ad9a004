"""What one does to the memory: make snippets unit length, mask, drop and move them, find what they vary along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gmem.errors import InputError
from gmem.threads import one_thread


def normalise(snippet: Tensor) -> Tensor:
    """Snippets [..., D] at unit length, float32; a zero snippet stays zero.

    >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return F.normalize(snippet.float(), dim=-1)


def mask(snippet: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Drops each coordinate of snippet [B, D] whose draw from [0, 1) is below `rate`; kept ones grow by 1/(1−rate)."""
    if not 0 <= rate < 1:
        raise InputError(f"the mask rate is {rate}; give a number from 0 up to, but not including, 1")
    return snippet * (uniform >= rate) / (1 - rate)


def drop(snippet: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Zeroes each snippet of [B, D] whose draw [B] from [0, 1) is below `rate`: trains guidance's other branch."""
    return snippet * (uniform >= rate)[:, None]


def perturb(snippet: Tensor, normal: Tensor, size: float) -> Tensor:
    """Snippets [B, D] at unit length, moved by noise about `size` long, and made unit length again.

    Args:
        snippet: [B, D] of any length.
        normal: [B, D] standard normal draws; `size` / √D of them are added.
        size: beside the snippet's length of 1: 0 leaves it, and from 2 on little is left of it.

    >>> perturb(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), size=0.0)
    tensor([[0.6000, 0.8000]])
    """
    if not 0 <= size < float("inf"):
        raise InputError(f"the size of noise is {size}; give a number from 0 up")
    return normalise(normalise(snippet) + size / snippet.shape[-1] ** 0.5 * normal)


@dataclass(frozen=True)
class Components:
    """A linear code of rank k for vectors of D dimensions: mean [D], basis [k, D] with orthonormal rows."""

    mean: Tensor
    basis: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Codes [..., k] of x [..., D], float32."""
        return (x.float() - self.mean) @ self.basis.T

    def reconstruct(self, code: Tensor) -> Tensor:
        """The nearest vectors [..., D] with these codes [..., k], float32."""
        return F.linear(code.float(), self.basis.T, self.mean)

    def to(self, device: torch.device | str) -> Components:
        return Components(self.mean.to(device), self.basis.to(device))


class Covariance:
    """Count, sum and outer sum of vectors seen in pieces, in float64; `merge` joins what several workers saw."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Adds vectors [..., D]."""
        rows = x.detach().reshape(-1, len(self.sum)).to("cpu", torch.float64)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.outer.addmm_(rows.T, rows)

    def merge(self, other: Covariance) -> None:
        self.count += other.count
        self.sum += other.sum
        self.outer += other.outer

    def principal_components(self, rank: int) -> Components:
        """The `rank` leading directions of variance about the mean, strongest first."""
        dim = len(self.sum)
        if not 1 <= rank <= dim:
            raise InputError(f"rank {rank} is impossible for vectors of {dim} dimensions; give 1 to {dim}")
        if self.count < 2:
            raise InputError(f"principal components need at least 2 vectors, not {self.count}")
        with one_thread():
            directions = torch.linalg.eigh(self._scatter()).eigenvectors.flip(1)[:, :rank].T
        strongest = directions.abs().argmax(1, keepdim=True)  # fixes the sign, which the decomposition leaves open
        basis = (directions * directions.gather(1, strongest).sign()).float().contiguous()
        return Components((self.sum / self.count).float(), basis)

    def energy(self, kept: Components) -> float:
        """Share of the variance about the mean that lies along the kept directions."""
        scatter = self._scatter()
        directions = kept.basis.double()
        along = float(((directions @ scatter) * directions).sum())
        return along / max(float(scatter.trace()), 1e-30)

    def _scatter(self) -> Tensor:
        mean = self.sum / self.count
        return self.outer - self.count * torch.outer(mean, mean)


def principal_components(pieces: Iterable[Tensor], rank: int) -> Components:
    """Leading components of vectors that come in pieces; memory stays at D², whatever their number.

    Args:
        pieces: tensors [..., D]; at least two vectors in all.
        rank: how many components, from 1 to D.

    Raises ValueError for other ranks and for fewer vectors.
    """
    total: Covariance | None = None
    for piece in pieces:
        total = total or Covariance(piece.shape[-1])
        total.update(piece)
    if total is None:
        raise InputError("principal components need at least 2 vectors, not 0")
    return total.principal_components(rank)
