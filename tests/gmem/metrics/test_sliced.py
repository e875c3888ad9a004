from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics import sliced, sliced_wasserstein


def _features(count: int, seed: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype("f4")


def _line(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)[:, None]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (_line(3, 1), _line(2, 5), (1 + 4) / 2),  # 1 to 2 and 3 to 5
        (_line(0), _line(0, 1), 1 / 2),
        (_line(1, 0), _line(0, 0, 1), 1 / 6),  # one sixth of the mass moves by 1
        (_line(0, 1, 2), _line(0, 0, 1, 1, 2, 2), 0),
        (_line(0, 6), _line(1, 2, 7, 9), (1 + 4 + 1 + 9) / 4),
    ],
)
def test_on_a_line_it_is_the_transport_of_equal_masses(x: np.ndarray, y: np.ndarray, expected: float) -> None:
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(expected, abs=1e-15)
    assert sliced_wasserstein(y, x, projections=3) == pytest.approx(expected, abs=1e-15)


def test_a_moved_set_lies_at_its_squared_step_over_the_dimensions() -> None:
    x = _features(50, 0)
    step = np.array([3, 0, 0, -4, 0, 0, 0, 0], dtype="f4")
    assert sliced_wasserstein(x, x + step, projections=20_000) == pytest.approx(25 / 8, rel=0.03)


def test_a_set_of_twice_the_width_lies_at_its_variance() -> None:
    """Along every direction the quantiles double: the mean of (2 q - q)^2."""
    x = _features(4000, 1)
    expected = np.square(x - x.mean(axis=0)).sum() / len(x) / 8
    found = sliced_wasserstein(x - x.mean(axis=0), 2 * (x - x.mean(axis=0)), projections=4000)
    assert found == pytest.approx(expected, rel=0.02)


def test_order_and_blocks_change_nothing_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _features(90, 0), _features(70, 1)
    found = sliced_wasserstein(x, y)
    assert sliced_wasserstein(x, y) == found != sliced_wasserstein(x, y, seed=1)
    assert sliced_wasserstein(x[::-1].copy(), y) == pytest.approx(found, rel=1e-12)
    monkeypatch.setattr(sliced, "_DIRECTIONS_AT_ONCE", 5)
    monkeypatch.setattr(sliced, "_ROWS_AT_ONCE", 16)
    assert sliced_wasserstein(x, y) == pytest.approx(found, rel=1e-12)


def test_bad_input_is_one_sentence() -> None:
    x = _features(10, 0)
    with pytest.raises(ValueError, match="8 and 5 dimensions"):
        sliced_wasserstein(x, x[:, :5])
    with pytest.raises(ValueError, match="at least one projection, not 0"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(ValueError, match="NaN"):
        sliced_wasserstein(x, np.full_like(x, np.nan))
