from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import kernel_distance


def _features(count: int, seed: int, shift: float = 0.0, dim: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(count, dim)).astype("f4")


def test_torch_fidelity_gives_the_same_on_the_same_features() -> None:
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = _features(300, 0), _features(250, 1, shift=0.3)
    options = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 7, "verbose": False}
    expected = kid.kid_features_to_metric(torch.from_numpy(x).double(), torch.from_numpy(y).double(), **options)
    found = kernel_distance(x, y, subset=100, subsets=20, seed=7)
    assert found.value == pytest.approx(expected[kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert found.deviation == pytest.approx(expected[kid.KEY_METRIC_KID_STD], rel=1e-6)


def test_the_whole_set_gives_the_u_statistic_without_error() -> None:
    x, y = _features(40, 0), _features(40, 1, shift=0.5)
    k = lambda a, b: (a.astype("f8") @ b.T.astype("f8") / 32 + 1) ** 3
    off = ~np.eye(40, dtype=bool)
    expected = k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean()
    found = kernel_distance(x, y, subset=40, subsets=1)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.standard_error is None


def test_the_standard_error_is_the_spread_over_new_samples() -> None:
    pairs = [(_features(120, 2 * i), _features(120, 2 * i + 1, shift=0.4)) for i in range(30)]
    found = [kernel_distance(x, y, subset=30, subsets=25) for x, y in pairs]
    spread = np.std([f.value for f in found], ddof=1)
    claimed = np.mean([f.standard_error for f in found])
    assert 0.7 * spread < claimed < 1.5 * spread


def test_the_seed_decides() -> None:
    x, y = _features(100, 0), _features(100, 1)
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1)
    assert kernel_distance(x, y, seed=1).value != kernel_distance(x, y, seed=2).value


def test_bad_input_is_one_sentence() -> None:
    x = _features(20, 0)
    with pytest.raises(ValueError, match="more samples than there are"):
        kernel_distance(x, x, subset=21)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="32 and 16 dimensions"):
        kernel_distance(x, x[:, :16])
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(x, np.full_like(x, np.nan))
