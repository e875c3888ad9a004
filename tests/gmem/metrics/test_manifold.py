from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import precision_recall


def _features(count: int, seed: int, shift: float = 0.0, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(count, dim)).astype("f4")


def _direct(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    """Every pair, one at a time, by the definition."""
    distance = lambda a, b: np.array([[np.linalg.norm(p - q) for q in b] for p in a])
    s, r = samples.astype("f8"), reference.astype("f8")
    radius_s, radius_r = (np.sort(distance(f, f), axis=1)[:, k] for f in (s, r))
    cross = distance(s, r)
    return (cross <= radius_r).any(axis=1).mean(), (radius_s >= cross.T).any(axis=1).mean()


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 3])
def test_blocks_agree_with_every_pair_computed_directly(block: int, k: int) -> None:
    x, y = _features(90, 0, shift=0.6), _features(120, 1)
    found = precision_recall(x, y, neighbours=k, block=block)
    precision, recall = _direct(x, y, k)
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-12)


def test_torch_fidelity_and_float32_give_the_same() -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = _features(400, 0, shift=0.3, dim=64), _features(300, 1, dim=64)
    expected = prc.prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    for dtype in (torch.float64, torch.float32):
        found = precision_recall(x, y, block=128, dtype=dtype)
        assert found.precision == pytest.approx(expected[prc.KEY_METRIC_PRECISION], rel=1e-6)
        assert found.recall == pytest.approx(expected[prc.KEY_METRIC_RECALL], rel=1e-6)


def test_copies_lie_on_the_manifold_and_strangers_do_not() -> None:
    reference = _features(50, 0)
    copied = precision_recall(reference[:25].repeat(2, axis=0), reference)
    assert copied.precision == 1.0 and copied.recall < 1.0
    far = precision_recall(reference + 1000, reference)
    assert (far.precision, far.recall) == (0.0, 0.0)


def test_bad_input_is_one_sentence() -> None:
    x = _features(10, 0)
    with pytest.raises(ValueError, match="at least 4 members"):
        precision_recall(x[:3], x)
    with pytest.raises(ValueError, match="6 and 5 dimensions"):
        precision_recall(x, x[:, :5])
