"""Numbers that all processes of a node hold in memory: they lie there once, in a file that each of them maps."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from storage.tables.cache import made_once

SHARED_FROM = 64 << 20
"""Bytes from which on a file pays; of less, each process has its own."""
Shapes = dict[str, tuple[int, ...]]
Fill = Callable[[dict[str, Tensor]], None]


def held(shapes: Shapes, fill: Fill, key: str, folder: str | None) -> dict[str, Tensor]:
    """float16 tensors of these shapes, by name; not to be written to.

    Where the folder cannot be written, or has no room, each process holds its own, and the log says so.

    Args:
        shapes: of each.
        fill: writes all of their numbers, into what it is given.
        key: decides the content.
        folder: of this node, for files; None: this process is alone.
    """
    size = 2 * sum(map(math.prod, shapes.values()))
    if folder is not None and size >= SHARED_FROM:
        of = "training data, which each process holds for itself"
        place = made_once(folder, key, size, partial(_write, shapes, fill), of)
        if place is not None:
            return _mapped(place, shapes, shared=False)
    own = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
    fill(own)
    return own


def give_back() -> None:
    """Returns what allocators keep of memory that reading took to the system, where they can."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim:
        trim(0)


def _write(shapes: Shapes, fill: Fill, place: Path) -> None:
    place.mkdir()
    for name, shape in shapes.items():
        with open(place / name, "wb") as file:  # a disk that is full is told here, and would kill whoever fills the map
            os.posix_fallocate(file.fileno(), 0, 2 * math.prod(shape))
    fill(_mapped(place, shapes, shared=True))


def _mapped(place: Path, shapes: Shapes, shared: bool) -> dict[str, Tensor]:
    """`shared`: what is written into them goes into the files; else it would be this process' own."""
    return {
        name: torch.from_file(str(place / name), shared, math.prod(shape), dtype=torch.float16).reshape(shape)
        for name, shape in shapes.items()
    }
