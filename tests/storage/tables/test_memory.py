"""Whose snippet stands for whom, and in how many numbers it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.errors import Damaged
from storage.ids import FIRST_FOREIGN_ID
from storage.tables.bank_basis import Basis
from storage.tables.memory import FILE, Memory, read_memory

MEMORY = Memory(np.array([1, 3, 4, 9]), np.array([3, 3, 9, 9]))
NOBODY = np.zeros(0, np.int64)


def directions(rank: int, dim: int) -> Basis:
    random = np.random.default_rng(0)
    turned = np.linalg.qr(random.normal(size=(dim, dim)))[0].astype(np.float32)
    return Basis(turned[:rank], random.normal(size=dim).astype(np.float32))


def test_pictures_have_the_snippet_kept_for_them_in_their_orientation() -> None:
    ids = np.array([2, 3, 6, 7, 8, 19])
    assert MEMORY.standing(ids).tolist() == [6, 7, 6, 7, 18, 19]
    assert MEMORY.keeps(ids).tolist() == [False, False, True, True, False, True]


def test_rows_of_no_training_picture_stand_for_themselves() -> None:
    others = np.array([0, 4, 10, 400, FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 3])
    assert MEMORY.standing(others).tolist() == others.tolist() and MEMORY.keeps(others).all()
    assert Memory(NOBODY, NOBODY).standing(others).tolist() == others.tolist()


def test_snippets_are_kept_along_a_few_directions_or_as_they_are() -> None:
    basis = directions(3, 8)
    inside = basis.mean + np.random.default_rng(1).normal(size=(5, 3)) @ basis.directions
    reduced = Memory(NOBODY, NOBODY, basis)
    stored = reduced.stored(inside)
    assert stored.shape == (5, 4) and stored.dtype == np.float16
    assert np.allclose(reduced.full(stored), inside, atol=0.02)
    assert np.array_equal(MEMORY.full(MEMORY.stored(inside)), inside.astype(np.float16))


@pytest.mark.parametrize("basis", [None, directions(3, 8)])
def test_it_is_read_as_it_was_written(tmp_path: Path, basis: Basis | None) -> None:
    Memory(MEMORY.pictures, MEMORY.kept, basis).write(str(tmp_path))
    read = read_memory(str(tmp_path))
    assert np.array_equal(read.pictures, MEMORY.pictures) and np.array_equal(read.kept, MEMORY.kept)
    assert (read.basis is None) == (basis is None)
    if basis and read.basis:
        assert np.array_equal(read.basis.matrix, basis.matrix)


def test_a_damaged_or_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"memory\.safetensors is missing: remove its folder and run stage bank again"):
        read_memory(str(tmp_path))
    MEMORY.write(str(tmp_path))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-9])
    with pytest.raises(Damaged, match="is damaged"):
        read_memory(str(tmp_path))
