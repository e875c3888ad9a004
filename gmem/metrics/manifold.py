"""Improved precision and recall on nearest-neighbour manifolds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.metrics.distances import blocks, squared_distances
from gmem.metrics.statistics import as_features


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples on the reference's manifold, and of the reference on the samples' manifold."""

    precision: float
    recall: float


def precision_recall(
    samples: Tensor | NDArray,
    reference: Tensor | NDArray,
    neighbours: int = 3,
    block: int = 2048,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> PrecisionRecall:
    """Precision and recall of samples [N, D] against a reference [M, D] (Kynkäänniemi et al., 2019).

    As ADM's evaluator: a set's manifold is the union of balls around its members, each reaching to the member's own
    `neighbours`-th nearest other member; a point on the rim is inside. float32 is what ADM uses; float64 decides ties
    the same way everywhere. Memory: a few blocks of block x block.

    Raises ValueError on different dimensions, NaN or infinity, or fewer than neighbours + 1 members.
    """
    generated, real = as_features(samples, "The samples' features"), as_features(reference, "The reference's features")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"Features of {generated.shape[1]} and {real.shape[1]} dimensions cannot be compared: use one detector for both."
        )
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need at least {neighbours + 1} members on each side, "
            f"and there are {len(generated)} samples and {len(real)} reference pictures."
        )
    centre = torch.from_numpy(real).double().mean(dim=0)
    x, y = ((torch.from_numpy(f).double() - centre).to(device, dtype) for f in (generated, real))
    return PrecisionRecall(
        precision=_share_inside(x, y, manifold_radii(y, neighbours, block), block),
        recall=_share_inside(y, x, manifold_radii(x, neighbours, block), block),
    )


def manifold_radii(features: Tensor, neighbours: int = 3, block: int = 2048) -> Tensor:
    """Squared distance [N] of each of the features [N, D] to its `neighbours`-th nearest other one."""
    return torch.cat([_radii(features, rows, neighbours, block) for rows in blocks(len(features), block)])


def _radii(features: Tensor, rows: slice, neighbours: int, block: int) -> Tensor:
    nearest = features.new_full((rows.stop - rows.start, 0), 0.0)
    for columns in blocks(len(features), block):
        distances = squared_distances(features[rows], features[columns])
        if columns == rows:
            distances.fill_diagonal_(0)  # exactly nearest to itself, so that the next `neighbours` are others
        nearest = torch.cat([nearest, distances], dim=1)
        nearest = nearest.topk(min(neighbours + 1, nearest.shape[1]), dim=1, largest=False).values
    return nearest.max(dim=1).values


def _share_inside(points: Tensor, members: Tensor, radii: Tensor, block: int) -> float:
    """Share of points [N, D] that lie in some ball of squared radius [M] around members [M, D]."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows in blocks(len(points), block):
        for columns in blocks(len(members), block):
            reached = squared_distances(points[rows], members[columns]) <= radii[columns]
            inside[rows] |= reached.any(dim=1)
    return int(inside.sum()) / len(points)
