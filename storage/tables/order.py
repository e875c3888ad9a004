"""Which pictures a step trains on: a pure function of the seed and the step, of which nobody needs to hold the whole."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import Refused
from storage.ids import id_of

KEYED_FROM = 1 << 24
"""Pictures from which on an epoch's order is computed place by place. Fewer are shuffled and held, 64 MB an epoch at
most: as they were before there was a choice, so that trainings that began then go on as they would have."""
ROUNDS = 8


class BatchOrder:
    """Which pictures each step trains on: every picture once an epoch in random order, its orientation drawn.

    A pure function of (seed, step), whatever came before; a batch may straddle epochs.
    """

    def __init__(self, seed: int, pictures: NDArray[np.integer], global_batch: int, mirrored: bool = False) -> None:
        """`pictures`: the sample numbers to go through; `mirrored`: whether mirror images are drawn as well."""
        if not len(pictures) or global_batch < 1:
            raise Refused(f"{len(pictures)} pictures in batches of {global_batch} cannot be trained on; give some")
        self.seed, self.samples, self.global_batch, self.mirrored = seed, pictures, global_batch, mirrored

    def pictures(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Sample numbers [B] and whether each is mirrored [B], for the step counted from 0."""
        place = step * self.global_batch + np.arange(self.global_batch)
        epoch, within = np.divmod(place, len(self.samples))
        chosen = np.empty(self.global_batch, np.int64)
        for number in np.unique(epoch):
            ours = epoch == number
            chosen[ours] = self.samples[self._shuffled(int(number), within[ours])]
        coins = _stream(self.seed, 1, step).random(self.global_batch) < 0.5
        return chosen, coins & self.mirrored

    def ids(self, step: int) -> Tensor:
        """int64 [B], of the step's pictures in their orientations."""
        samples, flipped = self.pictures(step)
        return torch.from_numpy(id_of(samples, flipped))

    def _shuffled(self, epoch: int, within: NDArray[np.int64]) -> NDArray[np.integer]:
        """What comes at these places of an epoch."""
        count = len(self.samples)
        if count < KEYED_FROM:
            return _permutation(self.seed, epoch, count)[within]
        return keyed(within, count, _stream(self.seed, 0, epoch).integers(1 << 64, size=ROUNDS, dtype=np.uint64))


def keyed(places: NDArray[np.int64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a permutation of `count` places sends these [B]. The keys choose it; each place is computed alone.

    A Feistel network permutes the numbers of as many bits, at most four times as many; what falls outside is sent on
    until it does not. Source: Black & Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), cycle-walking.
    """
    half = np.uint64(-(-(count - 1).bit_length() // 2))
    moved = places.astype(np.uint64)
    outside = np.arange(len(moved))
    while len(outside):
        moved[outside] = _network(moved[outside], half, keys)
        outside = outside[moved[outside] >= count]
    return moved.astype(np.int64)


def _network(numbers: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of the numbers of 2 * `half` bits: each round changes one half by a hash of the other."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_hash(right ^ key) & mask)
    return left << half | right


def _hash(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's last step, in which every bit of a number changes every bit of the result."""
    mixed = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.uint32]:
    return _stream(seed, 0, epoch).permutation(count).astype(np.uint32)


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
