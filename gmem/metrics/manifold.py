"""How two sets of features lie in each other's neighbourhoods: precision and recall, density and coverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.distances import blocks, squared_distances
from gmem.metrics.statistics import as_features

NEIGHBOURS = 3
"""Of precision and recall, as in ADM's evaluator."""
DENSITY_NEIGHBOURS = 5
"""Of density and coverage, as their authors chose: of equal distributions the coverage is then expected at 1 - 2^-5."""


@dataclass(frozen=True)
class Overlap:
    """How much of each set lies in balls around the members of the other.

    precision: share of samples in some ball of the reference.
    recall: share of the reference in some ball of the samples.
    density: in how many balls of the reference a sample lies, over how many are expected of equal distributions: about
        1 for those, more where samples crowd at the reference's own dense places, 0 for strangers.
    coverage: share of the reference's balls with a sample inside; unlike recall it does not rise by a few strays among
        the samples, whose balls are wide.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(
    samples: Tensor | NDArray,
    reference: Tensor | NDArray,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
    block: int = 2048,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Overlap:
    """Samples [N, D] against a reference [M, D]: precision and recall (Kynkäänniemi et al., 2019), density and coverage
    (Naeem et al., 2020).

    A ball around a member of a set reaches to the member's own k-th nearest other member of the set; a point on the rim
    is inside, as in ADM's evaluator. k is `neighbours` for precision and recall, `density_neighbours` = k for

        density = 1/(k N) sum over samples of the balls of the reference around it
        coverage = 1/M sum over the reference of [a sample is in its ball]

    float32 is what ADM uses; float64 decides ties the same way everywhere. Memory: a few blocks of block x block.

    Raises ValueError on different dimensions, NaN or infinity, or too few members on a side to have the neighbours.
    """
    generated, real = as_features(samples, "The samples' features"), as_features(reference, "The reference's features")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"Features of {generated.shape[1]} and {real.shape[1]} dimensions cannot be compared: use one detector for both."
        )
    most = max(neighbours, density_neighbours)
    if min(len(generated), len(real)) <= most:
        raise InputError(
            f"{most} neighbours need at least {most + 1} members on each side, "
            f"and there are {len(generated)} samples and {len(real)} reference pictures."
        )
    centre = torch.from_numpy(real).double().mean(dim=0)
    x, y = ((torch.from_numpy(f).double() - centre).to(device, dtype) for f in (generated, real))
    around_reference = manifold_radii(y, (neighbours, density_neighbours), block)
    around_samples = manifold_radii(x, (neighbours,), block)
    return _overlap(x, y, around_samples[:, 0], around_reference, density_neighbours, block)


def manifold_radii(features: Tensor, neighbours: tuple[int, ...], block: int = 2048) -> Tensor:
    """Squared distances [N, len(neighbours)] of each of the features [N, D] to its k-th nearest other ones."""
    return torch.cat([_radii(features, rows, neighbours, block) for rows in blocks(len(features), block)])


def _radii(features: Tensor, rows: slice, neighbours: tuple[int, ...], block: int) -> Tensor:
    nearest = features.new_full((rows.stop - rows.start, 0), 0.0)
    for columns in blocks(len(features), block):
        distances = squared_distances(features[rows], features[columns])
        if columns == rows:
            distances.fill_diagonal_(0)  # exactly nearest to itself, so that the next ones are others
        nearest = torch.cat([nearest, distances], dim=1)
        nearest = nearest.topk(min(max(neighbours) + 1, nearest.shape[1]), dim=1, largest=False).values
    return nearest.sort(dim=1).values[:, list(neighbours)]


def _overlap(x: Tensor, y: Tensor, around_x: Tensor, around_y: Tensor, neighbours: int, block: int) -> Overlap:
    """Of samples x [N, D] and reference y [M, D], with the squared radii around x [N] and around y [M, 2]: those of
    precision and of density. Every distance between the two is computed once."""
    on_reference = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    on_samples, covered = (torch.zeros(len(y), dtype=torch.bool, device=y.device) for _ in range(2))
    inside = torch.zeros((), dtype=torch.int64, device=x.device)
    for rows in blocks(len(x), block):
        for columns in blocks(len(y), block):
            distances = squared_distances(x[rows], y[columns])
            on_reference[rows] |= (distances <= around_y[columns, 0]).any(dim=1)
            on_samples[columns] |= (distances <= around_x[rows, None]).any(dim=0)
            near = distances <= around_y[columns, 1]
            covered[columns] |= near.any(dim=0)
            inside += near.sum()
    return Overlap(
        precision=_share(on_reference),
        recall=_share(on_samples),
        density=int(inside) / (neighbours * len(x)),
        coverage=_share(covered),
    )


def _share(found: Tensor) -> float:
    return int(found.sum()) / len(found)
