"""Random numbers as a pure function of where they are used: the same whatever the batch, the worker or the order.

Philox is a counter-based generator: the seed and the purpose are its key, and (step, place) say where in its sequence a
row's draws start. Streams of different purposes, steps and places never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

TRAINING, SAMPLING, PRIOR_TRAINING, PRIOR_SAMPLING, PERTURBING = 1, 2, 3, 4, 5  # purposes


def stream(seed: int, purpose: int, step: int, place: int) -> np.random.Generator:
    """The draws that belong to one place (in the global batch, or a sample's number) at one step."""
    if min(seed, step, place) < 0:
        raise ValueError(f"seed {seed}, step {step} and place {place} must not be negative")
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, place, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normals(seed: int, purpose: int, step: int, places: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal draws float32 [len(places), *shape]: row by row, one stream a place."""
    rows = [stream(seed, purpose, step, place).standard_normal(tuple(shape), dtype=np.float32) for place in places]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, *shape)
