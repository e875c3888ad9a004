"""How close samples lie to the pictures that the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.distances import blocks
from gmem.metrics.statistics import Array, as_features
from gmem.precision import multiplying

COPY_QUANTILE = 0.01
"""Of the held-out pictures' distances, that below which a sample is taken for a copy."""
_CANDIDATES = 3  # of each block, ranked again exactly: rounding may swap neighbours that are nearly as near


class Nearest:
    """The nearest training feature of each query [Q, D], found while the training features pass by in chunks.

    Chunks may be spread over workers with the same queries: `merge` keeps the nearer find, and of two equally near
    ones the lower id, so the result does not depend on the order. Candidates are found by matrix products, and the
    distance of those which may be nearer than what is known, for all the products' rounding, is then computed directly
    in float64: so an exact copy has distance 0. The longer a search goes on, the fewer those are.
    """

    def __init__(self, queries: Tensor | NDArray, device: str | torch.device = "cpu", block: int = 4096) -> None:
        self.queries = as_features(queries, "The queries")
        self.distance: Array = np.full(len(self.queries), np.inf)
        self.id: NDArray[np.int64] = np.full(len(self.queries), -1, dtype=np.int64)
        self._device = torch.device(device)
        self._block = block

    @cached_property
    def _centre(self) -> NDArray:
        """What is taken from queries and training features [D]: the matrix product cancels less around the origin."""
        return self.queries.mean(axis=0)

    @cached_property
    def _centred(self) -> tuple[Tensor, Tensor]:
        """The queries as the products take them [Q, D], and their squared lengths [Q]."""
        return self._around_centre(self.queries)

    def _around_centre(self, features: NDArray) -> tuple[Tensor, Tensor]:
        centred = (features - self._centre).astype(self.queries.dtype)
        moved = torch.from_numpy(centred).to(self._device)
        squares = moved.square().sum(dim=1)
        return moved, squares

    def update(self, features: Tensor | NDArray, ids: Tensor | NDArray) -> None:
        """Looks through training features [N, D] with their ids [N]."""
        rows = as_features(features, "The training features")
        names = np.asarray(ids, dtype=np.int64)
        if rows.shape[1] != self.queries.shape[1]:
            raise ValueError(
                f"Training features of {rows.shape[1]} dimensions do not belong to queries of "
                f"{self.queries.shape[1]}: use one detector for both."
            )
        if names.shape != (len(rows),):
            raise ValueError(f"{len(rows)} training features need as many ids, and there are {names.shape}.")
        for part in blocks(len(rows), self._block):
            passing = self._around_centre(rows[part])
            for asked in blocks(len(self.queries), self._block):
                with multiplying(self._device.type, "fp32"):
                    found = self._candidates(asked, *passing)
                for numbers, candidates in found:
                    self._rank(numbers, rows[part][candidates], names[part][candidates])

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

    def _candidates(self, asked: slice, y: Tensor, yy: Tensor) -> list[tuple[NDArray, NDArray]]:
        """Numbers of queries, and as many rows of y [N, D], squared lengths yy [N], each perhaps nearer than what is
        known; up to three times, of the nearest rows, the second nearest and the third."""
        x, xx = (part[asked] for part in self._centred)
        products = torch.addmm(yy[None], x, y.T, alpha=-2)  # |x - y|² - |x|²
        known = torch.from_numpy(self.distance[asked] ** 2).to(self._device)

        # Queries for which any row of y may be nearer than what is known.
        nearest = (products.amin(dim=1) + xx).double()
        low = nearest - self._rounding(xx, yy.max())
        near = (low <= known).nonzero()[:, 0]
        if not len(near):
            return []

        # Of each, the rows that may be the nearest of all.
        count = min(_CANDIDATES, len(y))
        values, found = products[near].topk(count, dim=1, largest=False)
        lengths = xx[near, None]
        squares = (values + lengths).double()
        slack = self._rounding(lengths, yy[found])
        highest = (squares + slack).amin(dim=1)
        best = torch.minimum(highest, known[near])
        wanted = (squares - slack <= best[:, None]).cpu().numpy()
        numbers = asked.start + near.cpu().numpy()
        places = found.cpu().numpy()
        return [(numbers[rows], column[rows]) for rows, column in zip(wanted.T, places.T, strict=True)]

    def _rounding(self, xx: Tensor, yy: Tensor) -> Tensor:
        """How far a squared distance by products may be off, by the squared lengths: (D + 5) u (|x| + |y|)² for sums in
        any order of numbers rounded by u = eps / 2, those rounded by the centring included; and twice that."""
        dim = self.queries.shape[1]
        epsilon = torch.finfo(xx.dtype).eps
        lengths = xx.double().sqrt() + yy.double().sqrt()
        return (dim + 5) * epsilon * lengths**2

    def _rank(self, numbers: NDArray, rows: NDArray, names: NDArray[np.int64]) -> None:
        """Computes the distance of each of the queries to its row, and keeps the nearer ones."""
        for part in blocks(len(numbers), self._block):
            asked = numbers[part]
            step = self.queries[asked].astype(np.float64) - rows[part]
            distance = np.sqrt((step**2).sum(axis=1))
            self._keep_nearer(asked, distance, names[part])

    def _keep_nearer(self, asked: slice | NDArray, distance: Array, names: NDArray[np.int64]) -> None:
        known = self.distance[asked]
        ids = self.id[asked]
        lower = (distance == known) & (names < ids)
        nearer = (distance < known) | lower
        self.distance[asked] = np.where(nearer, distance, known)
        self.id[asked] = np.where(nearer, names, ids)


@dataclass(frozen=True)
class Memorisation:
    """What the distances say.

    `ratio`: median distance of samples over that of held-out pictures, each to its nearest training picture. Near 1
    the samples keep the distance of new pictures; towards 0 they are copies.
    `closer`: share of samples nearer to training than 95 % of the held-out pictures are (0.05 if nothing is copied).
    `copied`: share of samples taken for copies of a training picture: those more similar to one (here: at a smaller
    distance from it) than 99 % of the held-out pictures are to any, which is nearer than `copy_distance`. New pictures
    come to 0.01; where held-out pictures are themselves near-copies, as frames of one film are, so may samples be.
    `from_source`: how often the nearest training picture is the one whose snippet the sample was made from.
    """

    ratio: float
    closer: float
    copied: float
    copy_distance: float
    from_source: float | None
    distances: Array
    nearest: NDArray[np.int64]
    held_out_distances: Array
    held_out_nearest: NDArray[np.int64]


def memorisation(samples: Nearest, held_out: Nearest, sources: Tensor | NDArray | None = None) -> Memorisation:
    """Compares samples with held-out pictures, both searched in the same training features.

    `sources` [N] names the training picture behind each sample's snippet, in the numbers given to `Nearest.update`.
    Give picture numbers (id // 2) to both, if a mirrored picture is to count as the picture itself.

    Raises ValueError where nothing was searched, dimensions differ, or `sources` has another length.
    """
    searched = np.isfinite(samples.distance).all() and np.isfinite(held_out.distance).all()
    if not searched:
        raise ValueError("No training features were searched: call update before measuring memorisation.")
    if samples.queries.shape[1] != held_out.queries.shape[1]:
        raise ValueError("Samples and held-out pictures have features of different dimensions: use one detector.")
    typical = float(np.median(held_out.distance))
    copy_distance = float(np.quantile(held_out.distance, COPY_QUANTILE))
    if typical == 0:
        raise InputError("Most held-out pictures are in the training set: hold out pictures that were not trained on.")
    close_distance = np.quantile(held_out.distance, 0.05)
    from_source = None
    if sources is not None:
        from_source = _from_source(samples.id, np.asarray(sources, dtype=np.int64))
    return Memorisation(
        ratio=float(np.median(samples.distance)) / typical,
        closer=float((samples.distance < close_distance).mean()),
        copied=float((samples.distance < copy_distance).mean()),
        copy_distance=copy_distance,
        from_source=from_source,
        distances=samples.distance,
        nearest=samples.id,
        held_out_distances=held_out.distance,
        held_out_nearest=held_out.id,
    )


def _from_source(nearest: NDArray[np.int64], sources: NDArray[np.int64]) -> float:
    if sources.shape != nearest.shape:
        raise ValueError(f"{len(nearest)} samples need as many sources, and there are {sources.shape}.")
    return float((nearest == sources).mean())
