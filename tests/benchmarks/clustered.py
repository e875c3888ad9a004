"""Snippets as encoders give them: in clusters, which vary along a few directions and a little along all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DIM, BLOCK = 768, 50_000
A_CLUSTER, DIRECTIONS = 250, 24
CLASSES = 997
"""Of which a class has so few rows that they are read one and all."""


def blocks(rows: int, seed: int = 0) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float16]]]:
    """Number of the first row, the class of each, and snippets [N, 768] of half floats; a block at a time."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((max(rows // A_CLUSTER, 8), DIM), dtype=np.float32)
    directions = draw.standard_normal((DIRECTIONS, DIM), dtype=np.float32) / np.sqrt(DIRECTIONS)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        owner = draw.integers(len(centres), size=count)
        along = draw.standard_normal((count, DIRECTIONS), dtype=np.float32) @ directions
        beside = draw.standard_normal((count, DIM), dtype=np.float32)
        yield first, owner % CLASSES, (centres[owner] + 0.5 * along + 0.2 * beside).astype(np.float16)
