from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import Gaussian, GaussianStatistics, frechet_distance


def _features(count: int, dim: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, dim)) @ random.normal(size=(dim, dim)) + 5 * random.normal(size=dim)).astype(
        "f4"
    )


def _gathered(parts: list[np.ndarray], dim: int) -> GaussianStatistics:
    statistics = GaussianStatistics(dim)
    for part in parts:
        statistics.update(part)
    return statistics


def test_mean_and_covariance_are_numpys() -> None:
    features = _features(301, 40)
    statistics = _gathered(np.array_split(features, 7), 40)
    assert statistics.count == 301
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0, dtype="f8"), rtol=1e-12)
    np.testing.assert_allclose(statistics.cov, np.cov(features.astype("f8"), rowvar=False), rtol=1e-9, atol=1e-12)


def test_the_distance_is_the_same_on_one_and_on_eight_workers() -> None:
    features, other = _features(1000, 64), _gathered([_features(700, 64, seed=1)], 64)
    one = _gathered([features], 64)
    eight = GaussianStatistics(64)
    for part in np.array_split(features, 8)[::-1]:
        eight.merge(_gathered(np.array_split(part, 3), 64))
    eight.merge(GaussianStatistics(64))  # a worker that was given nothing
    assert frechet_distance(eight, other) == pytest.approx(frechet_distance(one, other), rel=1e-9)


def test_a_mean_far_from_the_origin_does_not_cancel() -> None:
    features = _features(500, 8).astype("f8") + 1e6
    whole, halves = _gathered([features], 8), _gathered([features[:250]], 8)
    halves.merge(_gathered([features[250:]], 8))
    np.testing.assert_allclose(halves.cov, np.cov(features, rowvar=False), rtol=1e-7)
    np.testing.assert_allclose(whole.cov, halves.cov, rtol=1e-9)


def test_state_goes_there_and_back_and_half_precision_is_taken() -> None:
    statistics = _gathered([_features(20, 5)], 5)
    statistics.update(torch.randn(4, 5).bfloat16())
    again = GaussianStatistics.from_state(statistics.state())
    assert again.count == 24
    np.testing.assert_array_equal(again.cov, statistics.cov)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (np.ones((3, 4), "f4"), "4 dimensions"),
        (np.full((3, 5), np.nan, "f4"), "NaN or infinity in 3 of 3"),
        (np.full((3, 5), np.inf, "f4"), "NaN or infinity"),
        (np.ones(5, "f4"), "table"),
        (np.ones((0, 5), "f4"), "non-empty"),
        (np.ones((3, 5), "i4"), "floating-point"),
    ],
)
def test_bad_features_are_refused(features: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GaussianStatistics(5).update(features)


def test_one_sample_has_no_covariance() -> None:
    statistics = _gathered([_features(1, 3)], 3)
    with pytest.raises(ValueError, match="at least 2 samples, and there is 1"):
        _ = statistics.cov
    with pytest.raises(ValueError, match="3 dimensions do not belong"):
        GaussianStatistics(4).merge(statistics)


@pytest.mark.parametrize(
    ("mean", "cov", "sentence"),
    [
        (np.zeros(3), np.eye(2), "does not belong"),
        (np.zeros(2), np.array([[1.0, 2.0], [0.0, 1.0]]), "no covariance"),
        (np.zeros(2), -np.eye(2), "no covariance"),
        (np.array([0.0, np.nan]), np.eye(2), "NaN"),
    ],
)
def test_what_is_no_gaussian_is_refused(mean: np.ndarray, cov: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Gaussian(mean, cov)
