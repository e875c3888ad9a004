from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import Gaussian, GaussianStatistics, frechet_distance, frechet_distance_of_features, frechet_ratio


def _statistics(features: np.ndarray) -> GaussianStatistics:
    statistics = GaussianStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, dim)) * np.geomspace(1, 0.05, dim) + shift).astype("f4")


def test_commuting_gaussians_have_a_closed_form() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(30, 30)))[0]
    a, b = random.uniform(0.1, 4, size=(2, 30))
    mean = random.normal(size=30)
    expected = mean @ mean + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    distance = frechet_distance(
        Gaussian(np.zeros(30), basis @ np.diag(a) @ basis.T), Gaussian(mean, basis @ np.diag(b) @ basis.T)
    )
    assert distance == pytest.approx(expected, rel=1e-10)


def test_non_commuting_gaussians_of_two_dimensions_have_a_closed_form() -> None:
    # for 2 x 2: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), M = A B
    a, b = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    product = a @ b
    assert not np.allclose(product, product.T)
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    distance = frechet_distance(Gaussian(np.array([1.0, 2.0]), a), Gaussian(np.array([0.0, -1.0]), b))
    assert distance == pytest.approx(10 + np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)


def test_non_commuting_gaussians_built_from_their_optimal_map() -> None:
    # B = T A T with T symmetric positive definite: T is the optimal map, so tr sqrt(A B) = tr(A T)
    random = np.random.default_rng(1)
    x, y = random.normal(size=(2, 50, 60))
    a, t = x @ x.T / 60, y @ y.T / 60 + 0.1 * np.eye(50)
    b = t @ a @ t
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(a @ t)
    assert frechet_distance(Gaussian(np.zeros(50), a), Gaussian(np.zeros(50), b)) == pytest.approx(expected, rel=1e-8)


def test_torch_fidelity_gives_the_same_on_the_same_features() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = _features(900, 256, 0), _features(800, 256, 1, shift=0.1)
    doubles = [torch.from_numpy(f.astype("f8")) for f in (x, y)]
    expected = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, doubles), verbose=False)
    expected = expected[fid.KEY_METRIC_FID]
    assert frechet_distance(_statistics(x), _statistics(y)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("many", "few"), [(60, 40), (40, 60), (5, 5), (500, 40), (40, 500), (2, 2)])
@pytest.mark.parametrize("counted", [True, False])
def test_fewer_samples_than_dimensions_stay_real_and_right(many: int, few: int, counted: bool) -> None:
    x, y = _features(many, 200, 0), _features(few, 200, 1, shift=0.2)
    a, b = (_statistics(f).gaussian() for f in (x, y))
    if not counted:  # as a file of another tool: the rank has to be found
        a, b = Gaussian(a.mean, a.cov), Gaussian(b.mean, b.cov)
    exact = frechet_distance_of_features(x, y)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(exact, rel=1e-6)


def test_nothing_varies_and_equal_sets() -> None:
    still = _statistics(np.ones((10, 6), "f4"))
    assert frechet_distance(still, still) == 0
    x = _features(300, 64, 0)
    assert 0 <= frechet_distance(_statistics(x), _statistics(x)) < 1e-6
    assert frechet_distance(still, _statistics(np.full((10, 6), 3.0, "f4"))) == pytest.approx(24)


def test_bad_input_is_one_sentence() -> None:
    a, b = _statistics(_features(10, 4, 0)), _statistics(_features(10, 5, 0))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(a, _statistics(_features(1, 4, 0)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance_of_features(_features(1, 4, 0), _features(3, 4, 0))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet_distance_of_features(_features(3, 4, 0), _features(3, 5, 0))
    a.scatter[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(a, a)


def test_the_ratio_is_one_of_other_real_pictures_and_theirs_in_the_detectors_unit() -> None:
    reference = _statistics(_features(3000, 16, 0))
    real = _features(500, 16, 1)
    ratio = lambda samples, scale=1.0: frechet_ratio(
        scale * samples, scale * real, _statistics(scale * _features(3000, 16, 0))
    )
    as_good, worse = ratio(_features(500, 16, 2)), ratio(_features(500, 16, 2, shift=0.2))
    assert as_good.value == pytest.approx(1, abs=0.3) and worse.value > 10
    assert worse.value == pytest.approx(
        frechet_distance(_statistics(_features(500, 16, 2, shift=0.2)), reference) / worse.real_distance
    )
    assert ratio(_features(500, 16, 2, shift=0.2), scale=4.0).value == pytest.approx(worse.value, rel=1e-6)


def test_the_ratio_is_of_as_many_samples_as_real_pictures() -> None:
    """Else 200 real pictures would lie far from the reference for being few, and many samples would look the better."""
    reference, real, samples = _statistics(_features(4000, 16, 0)), _features(200, 16, 1), _features(4000, 16, 2)
    found = frechet_ratio(samples, real, reference)
    assert found.count == 200 and found.real_distance == frechet_distance(_statistics(real), reference)
    assert found.value == pytest.approx(1, abs=0.4) and found == frechet_ratio(samples, real, reference)
    assert frechet_distance(_statistics(samples), reference) < 0.2 * found.distance


def test_the_references_own_pictures_give_no_ratio() -> None:
    reference = _features(100, 16, 0)
    assert frechet_ratio(_features(100, 16, 1), reference, _statistics(reference)) is None
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_ratio(_features(100, 16, 1), reference[:1], _statistics(reference))
