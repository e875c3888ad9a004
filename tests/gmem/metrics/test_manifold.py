from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import overlap


def _features(count: int, seed: int, shift: float = 0.0, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(count, dim)).astype("f4")


def _direct(samples: np.ndarray, reference: np.ndarray, k: int, density_k: int) -> tuple[float, ...]:
    """Every pair, one at a time, by the definitions."""
    distance = lambda a, b: np.array([[np.linalg.norm(p - q) for q in b] for p in a])
    s, r = samples.astype("f8"), reference.astype("f8")
    within_s, within_r = (np.sort(distance(f, f), axis=1) for f in (s, r))
    cross = distance(s, r)
    near = cross <= within_r[:, density_k]
    return (
        (cross <= within_r[:, k]).any(axis=1).mean(),
        (within_s[:, k] >= cross.T).any(axis=1).mean(),
        near.sum() / (density_k * len(s)),
        near.any(axis=0).mean(),
    )


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize(("k", "density_k"), [(1, 4), (3, 5), (5, 2)])
def test_blocks_agree_with_every_pair_computed_directly(block: int, k: int, density_k: int) -> None:
    x, y = _features(90, 0, shift=0.6), _features(120, 1)
    found = overlap(x, y, neighbours=k, density_neighbours=density_k, block=block)
    values = (found.precision, found.recall, found.density, found.coverage)
    assert all(0 < value < 1 for value in values)
    assert values == pytest.approx(_direct(x, y, k, density_k), abs=1e-12)


def test_torch_fidelity_and_float32_give_the_same() -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = _features(400, 0, shift=0.3, dim=64), _features(300, 1, dim=64)
    expected = prc.prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    for dtype in (torch.float64, torch.float32):
        found = overlap(x, y, block=128, dtype=dtype)
        assert found.precision == pytest.approx(expected[prc.KEY_METRIC_PRECISION], rel=1e-6)
        assert found.recall == pytest.approx(expected[prc.KEY_METRIC_RECALL], rel=1e-6)


def test_copies_lie_on_the_manifold_and_strangers_do_not() -> None:
    reference = _features(50, 0)
    copied = overlap(reference[:25].repeat(2, axis=0), reference)
    assert copied.precision == 1.0 and copied.recall < 1.0
    far = overlap(reference + 1000, reference)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_equal_distributions_have_the_expected_density_and_coverage() -> None:
    """Of the M + N others around a member, coverage misses those whose five nearest are all of the reference."""
    found = overlap(_features(2000, 0), _features(2000, 1))
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.015)


def test_one_mode_of_two_is_dense_and_covers_half() -> None:
    """Ten points on a line, far from ten others: with k = 1 a ball reaches to the next point."""
    mode, other = np.arange(10.0)[:, None], np.arange(10.0)[:, None] + 1000
    found = overlap(mode, np.concatenate([mode, other]), neighbours=1, density_neighbours=1)
    assert (found.precision, found.recall, found.coverage) == (1, 0.5, 0.5)
    assert found.density == pytest.approx((8 * 3 + 2 * 2) / 10)  # its own ball and those of its neighbours


def test_bad_input_is_one_sentence() -> None:
    x = _features(10, 0)
    with pytest.raises(ValueError, match="5 neighbours need at least 6 members"):
        overlap(x[:5], x)
    with pytest.raises(ValueError, match="6 and 5 dimensions"):
        overlap(x, x[:, :5])
