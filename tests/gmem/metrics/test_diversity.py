from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics import snippet_diversity

GROUPS = np.repeat(np.arange(3), 2)


def test_pairs_of_one_snippet_beside_pairs_of_two() -> None:
    """Three snippets at the corners of a triangle of sides 3, 4 and 5, two samples at each corner but for 1 and 2 off."""
    corners = np.array([[0.0, 0], [3, 0], [0, 4]])
    rows = np.concatenate([corners.repeat(2, axis=0), np.zeros((6, 1))], axis=1)
    exact = snippet_diversity(rows, GROUPS)
    assert (exact.value, exact.within, exact.between) == pytest.approx((0, 0, 4), abs=1e-7)
    rows[1, 2], rows[3, 2], rows[5, 2] = 1, 1, 1  # out of the plane
    found = snippet_diversity(rows, GROUPS)
    between = np.mean([(side + np.hypot(side, 1)) / 2 for side in (3, 4, 5)])
    assert (found.within, found.between) == pytest.approx((1, between))
    assert found.value == pytest.approx(1 / between)


def test_where_the_snippet_decides_nothing_it_is_one() -> None:
    rows = np.random.default_rng(0).normal(5, size=(400, 8)).astype("f4")
    assert snippet_diversity(rows, np.arange(400) // 4).value == pytest.approx(1, abs=0.03)


def test_samples_that_are_all_alike_have_none() -> None:
    assert snippet_diversity(np.ones((6, 4)), GROUPS).value == 0


def test_bad_input_is_one_sentence() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4))
    with pytest.raises(ValueError, match="6 samples need as many snippets"):
        snippet_diversity(rows, GROUPS[:5])
    for groups in (np.arange(6), np.zeros(6, int)):
        with pytest.raises(ValueError, match="two samples of one snippet, and another"):
            snippet_diversity(rows, groups)
