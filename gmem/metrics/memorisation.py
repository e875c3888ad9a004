"""How close samples lie to the pictures that the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.metrics.distances import blocks, squared_distances
from gmem.metrics.statistics import Array, as_features

_CANDIDATES = 3  # of each block, ranked again exactly: rounding may swap neighbours that are nearly as near


class Nearest:
    """The nearest training feature of each query [Q, D], found while the training features pass by in chunks.

    Chunks may be spread over workers with the same queries: `merge` keeps the nearer find, and of two equally near
    ones the lower id, so the result does not depend on the order. Candidates are found by matrix products and their
    distance is then computed directly in float64, so an exact copy has distance 0.
    """

    def __init__(self, queries: Tensor | NDArray, device: str | torch.device = "cpu", block: int = 4096) -> None:
        self.queries = as_features(queries, "The queries")
        self.distance: Array = np.full(len(self.queries), np.inf)
        self.id: NDArray[np.int64] = np.full(len(self.queries), -1, dtype=np.int64)
        self._device, self._block = torch.device(device), block

    def update(self, features: Tensor | NDArray, ids: Tensor | NDArray) -> None:
        """Looks through training features [N, D] with their ids [N]."""
        rows, names = as_features(features, "The training features"), np.asarray(ids, dtype=np.int64)
        if rows.shape[1] != self.queries.shape[1]:
            raise ValueError(
                f"Training features of {rows.shape[1]} dimensions do not belong to queries of "
                f"{self.queries.shape[1]}: use one detector for both."
            )
        if names.shape != (len(rows),):
            raise ValueError(f"{len(rows)} training features need as many ids, and there are {names.shape}.")
        for part in blocks(len(rows), self._block):
            for asked in blocks(len(self.queries), self._block):
                self._search(asked, rows[part], names[part])

    def merge(self, other: Nearest) -> None:
        """Takes over what another worker found nearer, for the same queries."""
        if other.distance.shape != self.distance.shape or not np.array_equal(self.queries, other.queries):
            raise ValueError("Searches for different queries cannot be merged: give every worker the same queries.")
        self.keep(other.distance, other.id)

    def keep(self, distance: Array, ids: NDArray[np.int64]) -> None:
        """Takes over what another worker found for the same queries: distances [Q] and ids [Q]."""
        if distance.shape != self.distance.shape or ids.shape != self.id.shape:
            raise ValueError(f"{len(self.distance)} queries need as many finds, and there are {len(distance)}.")
        self._keep_nearer(slice(0, len(self.distance)), distance, ids)

    def _search(self, asked: slice, rows: NDArray, names: NDArray[np.int64]) -> None:
        centre = rows.mean(axis=0)  # the matrix product cancels less around the origin
        x, y = (torch.from_numpy(f - centre).to(self._device) for f in (self.queries[asked], rows))
        found = squared_distances(x, y).topk(min(_CANDIDATES, len(rows)), dim=1, largest=False).indices.cpu().numpy()
        for candidate in found.T:
            step = self.queries[asked].astype(np.float64) - rows[candidate]
            self._keep_nearer(asked, np.sqrt((step**2).sum(axis=1)), names[candidate])

    def _keep_nearer(self, asked: slice, distance: Array, names: NDArray[np.int64]) -> None:
        known, ids = self.distance[asked], self.id[asked]
        nearer = (distance < known) | ((distance == known) & (names < ids))
        self.distance[asked] = np.where(nearer, distance, known)
        self.id[asked] = np.where(nearer, names, ids)


@dataclass(frozen=True)
class Memorisation:
    """What the distances say.

    `ratio`: median distance of samples over that of held-out pictures, each to its nearest training picture. Near 1
    the samples keep the distance of new pictures; towards 0 they are copies.
    `closer`: share of samples nearer to training than 95 % of the held-out pictures are (0.05 if nothing is copied).
    `from_source`: how often the nearest training picture is the one whose snippet the sample was made from.
    """

    ratio: float
    closer: float
    from_source: float | None
    distances: Array
    nearest: NDArray[np.int64]
    held_out_distances: Array


def memorisation(samples: Nearest, held_out: Nearest, sources: Tensor | NDArray | None = None) -> Memorisation:
    """Compares samples with held-out pictures, both searched in the same training features.

    `sources` [N] names the training picture behind each sample's snippet, in the numbers given to `Nearest.update`.
    Give picture numbers (id // 2) to both, if a mirrored picture is to count as the picture itself.

    Raises ValueError where nothing was searched, dimensions differ, or `sources` has another length.
    """
    if not (np.isfinite(samples.distance).all() and np.isfinite(held_out.distance).all()):
        raise ValueError("No training features were searched: call update before measuring memorisation.")
    if samples.queries.shape[1] != held_out.queries.shape[1]:
        raise ValueError("Samples and held-out pictures have features of different dimensions: use one detector.")
    typical = float(np.median(held_out.distance))
    if typical == 0:
        raise ValueError("Most held-out pictures are in the training set: hold out pictures that were not trained on.")
    return Memorisation(
        ratio=float(np.median(samples.distance)) / typical,
        closer=float((samples.distance < np.quantile(held_out.distance, 0.05)).mean()),
        from_source=None if sources is None else _from_source(samples.id, np.asarray(sources, dtype=np.int64)),
        distances=samples.distance,
        nearest=samples.id,
        held_out_distances=held_out.distance,
    )


def _from_source(nearest: NDArray[np.int64], sources: NDArray[np.int64]) -> float:
    if sources.shape != nearest.shape:
        raise ValueError(f"{len(nearest)} samples need as many sources, and there are {sources.shape}.")
    return float((nearest == sources).mean())
