"""Which rows a sample of the bank consists of: a function of the rows to choose from, their number and a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_evenly(ids: NDArray[np.int64], n: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Ids [n] of `ids` in random order, none twice before all have come."""
    return np.concatenate([draw.permutation(ids) for _ in range(-(-n // len(ids)))])[:n]


def draw_balanced(ids: NDArray[np.int64], values: NDArray[Any], n: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Ids [n], of each value equally many: round by round one of each, in random order."""
    each = -(-n // len(np.unique(values)))
    columns = np.stack([draw_evenly(ids[values == value], each, draw) for value in np.unique(values)])
    return np.concatenate([draw.permutation(row) for row in columns.T])[:n]
