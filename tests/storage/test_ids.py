"""A row's id says which picture it is of, and whether mirrored."""

from __future__ import annotations

import numpy as np

from storage.ids import FIRST_FOREIGN_ID, id_of, is_flipped, same_picture, sample_of


def test_sample_and_orientation_come_back_from_an_id() -> None:
    samples = np.array([0, 1, 7, FIRST_FOREIGN_ID // 2 - 1])
    flipped = np.array([False, True, True, True])
    ids = id_of(samples, flipped)
    assert ids.tolist() == [0, 3, 15, FIRST_FOREIGN_ID - 1]
    assert sample_of(ids).tolist() == samples.tolist()
    assert is_flipped(ids).tolist() == flipped.tolist()


def test_one_orientation_may_stand_for_all() -> None:
    assert id_of([2, 3], False).tolist() == [4, 6]
    assert id_of([2, 3], True).tolist() == [5, 7]


def test_a_picture_is_itself_and_its_mirror_image_and_a_foreign_row_itself_alone() -> None:
    assert same_picture([6, 7, 8], 7).tolist() == [True, True, False]
    foreign = [FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 1]
    assert same_picture(foreign, FIRST_FOREIGN_ID).tolist() == [True, False]
