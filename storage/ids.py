"""Numbers of rows: the one rule by which latents, snippets and patch tokens of a picture find each other.

A picture kept by ingest has a number, its sample. Whatever is made of it carries `id = 2 * sample + flipped`: joins are
arithmetic. Rows that belong to no picture of the source have ids from `FIRST_FOREIGN_ID` upward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIRST_FOREIGN_ID = 2**40


def id_of(samples: ArrayLike, flipped: ArrayLike) -> NDArray[np.int64]:
    """Ids int64 [...] of samples [...], as they are or mirrored (bool, of one shape or one for all)."""
    return 2 * np.asarray(samples, np.int64) + np.asarray(flipped, bool)


def sample_of(ids: ArrayLike) -> NDArray[np.int64]:
    """Samples int64 [...] of ids [...] below `FIRST_FOREIGN_ID`."""
    return np.asarray(ids, np.int64) // 2


def same_picture(ids: ArrayLike, row: int) -> NDArray[np.bool_]:
    """Whether each id [...] is the row itself or its mirror image; foreign rows have none."""
    there = np.asarray(ids, np.int64)
    mirrored = (sample_of(there) == sample_of(row)) & (there < FIRST_FOREIGN_ID)
    return (there == row) | mirrored


def is_flipped(ids: ArrayLike) -> NDArray[np.bool_]:
    """Whether each id [...] below `FIRST_FOREIGN_ID` is a mirror image's."""
    return np.asarray(ids, np.int64) % 2 == 1
