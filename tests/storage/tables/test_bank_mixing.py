"""Mixtures of snippets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_mixing import METHODS, mix, near_mixtures


def vectors(n: int, dim: int = 64) -> Any:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_spherical_of_two_is_their_slerp() -> None:
    a, b = parents = vectors(2)
    angle = np.arccos(unit(a) @ unit(b))
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        expected = (np.sin((1 - share) * angle) * unit(a) + np.sin(share * angle) * unit(b)) / np.sin(angle)
        np.testing.assert_allclose(unit(mix(parents, "spherical", [1 - share, share])), expected, atol=2e-6)


def test_spherical_of_many_is_where_the_weighted_arcs_cancel() -> None:
    parents, weights = vectors(5), np.array([1, 2, 3, 4, 5]) / 15
    mean = unit(mix(parents, "spherical", weights))
    cosine = unit(parents) @ mean
    across = unit(parents) - cosine[:, None] * mean
    pull = weights * np.arccos(cosine) @ unit(across)
    assert np.linalg.norm(pull) < 1e-5


def test_linear_is_the_weighted_mean_of_unit_vectors() -> None:
    parents = vectors(3)
    expected = unit(np.array([0.5, 0.25, 0.25]) @ unit(parents))
    np.testing.assert_allclose(unit(mix(parents, "linear", [2, 1, 1])), expected, atol=1e-6)


def test_halves_and_mask_take_each_coordinate_of_one_parent() -> None:
    parents = unit(vectors(2))
    halves = unit(mix(parents, "halves"))
    both = unit(np.concatenate([parents[0, :32], parents[1, 32:]]))
    np.testing.assert_allclose(halves, both, atol=1e-6)
    quarter = mix(parents, "halves", [3, 1])
    np.testing.assert_allclose(unit(quarter), unit(np.concatenate([parents[0, :48], parents[1, 48:]])), atol=1e-6)
    signs = np.stack([np.ones(64), -np.ones(64)]).astype(np.float32)
    masked = mix(signs, "mask", seed=1)
    np.testing.assert_allclose(np.abs(masked), 1, atol=1e-6)
    assert 16 < (masked > 0).sum() < 48
    assert np.array_equal(masked, mix(signs, "mask", seed=1)) and not np.array_equal(masked, mix(signs, "mask", seed=2))
    np.testing.assert_allclose(unit(mix(parents, "mask", [0, 1])), parents[1], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_as_long_as_its_parents_in_the_mean(method: str) -> None:
    parents = vectors(3) * np.array([[1], [10], [100]], np.float32)
    assert np.linalg.norm(mix(parents, method)) == pytest.approx(np.linalg.norm(parents, axis=1).mean(), rel=1e-5)


def test_what_cannot_be_mixed_is_refused() -> None:
    a = vectors(1)
    pair = vectors(2)
    for parents, method, weights, words in (
        (a, "linear", None, "at least 2 parents"),
        (pair, "blend", None, "'blend' is unknown"),
        (pair, "linear", [1.0], "1 weights do not fit 2"),
        (pair, "linear", [1.0, -1.0], "from 0 up"),
        (pair, "linear", [0.0, 0.0], "from 0 up"),
        (pair, "linear", [1.0, float("nan")], "from 0 up"),
        (pair, "linear", [1.0, float("inf")], "from 0 up"),
        (np.concatenate([a, -a]), "linear", None, "cancel"),
        (np.concatenate([a, -a]), "spherical", None, "opposite"),
    ):
        with pytest.raises(Refused, match=words):
            mix(parents, method, weights)


def test_near_mixtures_lie_between_a_row_and_one_of_its_nearest(bank: Bank) -> None:
    ids = [0, 7, 7, 30]
    mixed, partners = near_mixtures(bank, ids, 3, seed=1)
    units = {
        i: row / np.linalg.norm(row) for i, row in zip(range(60), bank.snippets(range(60)).float().numpy(), strict=True)
    }
    for mine, snippet, partner in zip(ids, mixed, partners.tolist(), strict=True):
        near = [i for i in sorted(units, key=lambda i: -units[mine] @ units[i]) if i >> 1 != mine >> 1][:3]
        direction = snippet / np.linalg.norm(snippet)
        parents = [i for i in near if abs(units[mine] @ direction - units[i] @ direction) < 1e-3]
        assert parents == [partner] and units[mine] @ direction > units[mine] @ units[partner]
    assert np.array_equal(mixed[1:], near_mixtures(bank, ids[1:], 3, seed=1, first=1).snippets)
    [only] = near_mixtures(bank, [0], 60, seed=1, where="key = 'k5'").snippets
    assert any(np.allclose(only, bank.mixture([0, other])) for other in (10, 11))


def test_a_row_without_another_is_not_mixed(bank: Bank) -> None:
    with pytest.raises(Refused, match="row 0 has no other one near"):
        near_mixtures(bank, [0], 3, seed=0, where="key = 'k0'")


def test_foreign_rows_are_no_mirror_images_of_each_other(bank: Bank) -> None:
    first, second = bank.append(np.eye(2, 12), "external", bank.encoder, keys=["a", "b"]).tolist()
    assert second == first ^ 1
    near = near_mixtures(bank, [first, second], 1, seed=0, where="origin = 'external'")
    assert near.partners.tolist() == [second, first]
