from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics import Nearest, memorisation


def _features(count: int, seed: int, dim: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, size=(count, dim)).astype("f4")


TRAINING, IDS = _features(300, 0), np.arange(300) * 10


def _searched(queries: np.ndarray, parts: int = 1, block: int = 64) -> Nearest:
    """As on `parts` workers, each with a share of the training features."""
    searches = []
    for rows in np.array_split(np.arange(300), parts):
        search = Nearest(queries, block=block)
        search.update(TRAINING[rows], IDS[rows])
        searches.append(search)
    for other in searches[:0:-1]:
        searches[0].merge(other)
    return searches[0]


@pytest.mark.parametrize("parts", [1, 5])
def test_the_nearest_is_the_one_of_every_pair(parts: int) -> None:
    queries = _features(70, 1)
    distances = np.linalg.norm(queries[:, None].astype("f8") - TRAINING[None], axis=2)
    found = _searched(queries, parts)
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found.id, IDS[distances.argmin(axis=1)])


def test_only_what_may_be_nearer_than_what_is_known_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is missed for it where the products' rounding is worst: far from the origin, and of equal pictures."""
    ranked: list[int] = []
    rank = Nearest._rank
    monkeypatch.setattr(
        Nearest, "_rank", lambda self, numbers, *rest: ranked.append(len(numbers)) or rank(self, numbers, *rest)
    )
    random = np.random.default_rng(0)
    shards = [(random.normal(size=(256, 32)) + 1000).astype("f4") for _ in range(20)]
    shards[7][3] = shards[2][9]
    queries = np.concatenate(
        [(random.normal(size=(500, 32)) + 1000).astype("f4"), shards[2][9:10], shards[4][:5] + 1e-3]
    )
    search, known = Nearest(queries, block=128), np.full(len(queries), np.inf)
    for number, shard in enumerate(shards[::-1]):
        search.update(shard, np.arange(256) + 256 * (20 - number))
        known = np.minimum(known, np.linalg.norm(queries[:, None].astype("f8") - shard, axis=2).min(axis=1))
        np.testing.assert_allclose(search.distance, known, rtol=1e-12)
    assert search.distance[500] == 0 and search.id[500] == 256 * 3 + 9  # the lower of two equal ones
    assert sum(ranked) < 0.2 * 3 * 2 * len(shards) * len(queries)


def test_of_two_equal_training_pictures_the_lower_id_is_named() -> None:
    search = Nearest(TRAINING[:5])
    search.update(np.concatenate([TRAINING, TRAINING]), np.concatenate([IDS + 5000, IDS]))
    np.testing.assert_array_equal(search.id, IDS[:5])


def test_copies_are_found_and_named() -> None:
    chosen = np.array([5, 17, 17, 250])
    found = memorisation(_searched(TRAINING[chosen]), _searched(_features(100, 2)), sources=IDS[[5, 17, 18, 250]])
    assert found.ratio == 0 and found.closer == 1
    assert found.from_source == 0.75
    np.testing.assert_array_equal(found.distances, 0)
    np.testing.assert_array_equal(found.nearest, IDS[chosen])


def test_new_pictures_keep_the_distance_of_held_out_ones() -> None:
    found = memorisation(_searched(_features(400, 3)), _searched(_features(400, 4)))
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert found.closer == pytest.approx(0.05, abs=0.04)
    assert found.from_source is None


def test_copies_among_new_pictures_are_counted_however_the_training_set_was_searched() -> None:
    """A hundredth of the training set's own grain away from it, held-out pictures never lie."""
    copies = TRAINING[:30] + 0.01 * _features(30, 5)
    samples = np.concatenate([copies, _features(70, 6)])
    found = [
        memorisation(_searched(samples, parts, block), _searched(_features(400, 4), parts, block))
        for parts, block in ((1, 64), (7, 11))
    ]
    assert found[0].copied == found[1].copied == pytest.approx(0.3, abs=0.021)
    assert found[0].copy_distance == np.quantile(found[0].held_out_distances, 0.01)


def test_new_pictures_are_taken_for_copies_once_in_a_hundred() -> None:
    assert memorisation(_searched(_features(3000, 3)), _searched(_features(3000, 4))).copied == pytest.approx(
        0.01, abs=0.006
    )


def test_what_is_no_nearer_than_held_out_near_copies_is_no_copy() -> None:
    """Two in a hundred held-out pictures are in the training set as well."""
    held_out = np.concatenate([TRAINING[:8], _features(392, 4)])
    found = memorisation(_searched(TRAINING[:20] + 0.01), _searched(held_out))
    assert found.copy_distance == 0 and found.copied == 0 and found.closer == 1


def test_bad_input_is_one_sentence() -> None:
    good = _searched(_features(5, 1))
    with pytest.raises(ValueError, match="No training features were searched"):
        memorisation(Nearest(_features(5, 1)), good)
    with pytest.raises(ValueError, match="5 samples need as many sources"):
        memorisation(good, good, sources=IDS[:4])
    with pytest.raises(ValueError, match="in the training set"):
        memorisation(good, _searched(TRAINING[:9]))
    with pytest.raises(ValueError, match="different queries"):
        good.merge(_searched(_features(5, 2)))
    with pytest.raises(ValueError, match="5 queries need as many finds, and there are 4"):
        good.keep(good.distance[:4], good.id[:4])
    with pytest.raises(ValueError, match="8 dimensions do not belong to queries of 16"):
        good.update(TRAINING[:, :8], IDS)
    with pytest.raises(ValueError, match="as many ids"):
        good.update(TRAINING, IDS[:9])
