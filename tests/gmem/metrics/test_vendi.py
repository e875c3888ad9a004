from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics import vendi, vendi_score


def test_copies_are_worth_one_and_orthogonal_directions_their_number() -> None:
    one = np.random.default_rng(0).normal(size=(1, 6))
    assert vendi_score(one.repeat(5, axis=0) * np.arange(1, 6)[:, None]) == pytest.approx(1)
    assert vendi_score(3 * np.eye(6)[:4]) == pytest.approx(4)
    assert vendi_score(np.eye(4).repeat(7, axis=0)) == pytest.approx(4)  # more rows than dimensions


def test_unequal_groups_are_worth_the_exponential_of_their_entropy() -> None:
    groups = np.eye(3).repeat([6, 3, 1], axis=0)
    expected = np.exp(-sum(p * np.log(p) for p in (0.6, 0.3, 0.1)))
    assert vendi_score(groups) == pytest.approx(expected)


def test_two_pictures_by_the_angle_between_them() -> None:
    """K / 2 of cosine c has the eigenvalues (1 + c) / 2 and (1 - c) / 2."""
    c = 0.6
    p, q = (1 + c) / 2, (1 - c) / 2
    rows = np.array([[2.0, 0], [c, np.sqrt(1 - c**2)]])
    assert vendi_score(rows) == pytest.approx(np.exp(-p * np.log(p) - q * np.log(q)))


def test_kernel_and_covariance_say_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).normal(0.5, size=(40, 12)).astype("f4")
    by_covariance = vendi_score(rows)
    monkeypatch.setattr(vendi, "_ROWS_AT_ONCE", 7)
    assert vendi_score(rows) == pytest.approx(by_covariance, rel=1e-12)
    wide = np.concatenate([rows, np.zeros((40, 60), "f4")], axis=1)  # the same cosines, taken of the kernel
    assert vendi_score(wide) == pytest.approx(by_covariance, rel=1e-10)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="length zero has no direction"):
        vendi_score(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        vendi_score(np.full((3, 4), np.nan))
