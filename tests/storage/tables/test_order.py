from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.tables import order
from storage.tables.order import ROUNDS, BatchOrder, keyed


def keys(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1 << 64, size=ROUNDS, dtype=np.uint64)


@pytest.fixture(params=["held", "computed"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to shuffle, whatever the number of pictures."""
    if request.param == "computed":
        monkeypatch.setattr(order, "KEYED_FROM", 0)


def test_every_picture_once_an_epoch_whatever_the_batch(either: None) -> None:
    samples = np.array([3, 5, 8, 13, 21, 34, 55])
    for batch in (1, 3, 7, 10, 20):
        batches = BatchOrder(1, samples, batch)
        seen = np.concatenate([batches.pictures(step)[0] for step in range(42 // batch + 1)])
        for epoch in range(len(seen) // 7):
            assert sorted(seen[7 * epoch : 7 * epoch + 7]) == samples.tolist()
    first, second = (np.concatenate([BatchOrder(1, samples, 7).pictures(step)[0]]) for step in (0, 1))
    assert first.tolist() != second.tolist()


def test_the_order_is_a_function_of_seed_and_step(either: None) -> None:
    samples = np.arange(100)
    ahead = BatchOrder(7, samples, 32, mirrored=True)
    history = [ahead.ids(step) for step in range(9)]
    resumed = BatchOrder(7, samples, 32, mirrored=True)
    assert torch.equal(resumed.ids(8), history[8])
    assert not torch.equal(BatchOrder(8, samples, 32, mirrored=True).ids(8), history[8])


def test_orders_of_earlier_releases_stay() -> None:
    """A training that goes on after an upgrade sees the pictures that it would have seen."""
    assert BatchOrder(7, np.arange(100), 8).pictures(0)[0].tolist() == [63, 0, 79, 98, 92, 44, 4, 12]
    assert keyed(np.arange(8), 100, keys(0)).tolist() == [17, 42, 29, 81, 79, 56, 96, 39]


def test_orientations_are_drawn_evenly_and_never_where_there_are_no_mirror_images() -> None:
    flipped = np.concatenate([BatchOrder(0, np.arange(50), 64, mirrored=True).pictures(s)[1] for s in range(100)])
    assert abs(flipped.mean() - 0.5) < 0.03
    assert not (BatchOrder(0, np.arange(50), 64).ids(0) % 2).any()
    with pytest.raises(ValueError, match="cannot be trained"):
        BatchOrder(0, np.array([], np.int64), 4)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000, 65_537])
def test_a_keyed_permutation_is_one(count: int) -> None:
    sent = keyed(np.arange(count), count, keys(count))
    assert sorted(sent.tolist()) == list(range(count))
    assert keyed(np.array([count - 1]), count, keys(count))[0] == sent[-1]


def test_a_keyed_permutation_is_as_good_as_a_shuffle() -> None:
    """As many numbers stay where they are as in shuffles, neighbours do not stay together, keys have nothing in common."""
    count = 10_000
    sent = np.array([keyed(np.arange(count), count, keys(seed)) for seed in range(50)])
    assert 30 < (sent == np.arange(count)).sum() < 72  # one of each in the mean: seven about 50
    assert abs(np.corrcoef(sent[0, :-1], sent[0, 1:])[0, 1]) < 0.04
    assert np.abs(np.corrcoef(sent) - np.eye(50)).max() < 0.06
    thirds = np.array([[(part < count / 3).sum() for part in np.array_split(each, 10)] for each in sent])
    assert abs(thirds.mean() - 1000 / 3) < 1 and 10 < thirds.std() < 20  # hypergeometric: 14


def test_a_place_among_ten_billion_is_computed_alone() -> None:
    places = np.concatenate([np.arange(500), 10**10 - 1 - np.arange(500)])
    sent = keyed(places, 10**10, keys(3))
    assert len(np.unique(sent)) == 1000 and sent.min() >= 0 and sent.max() < 10**10
    assert abs(sent.mean() / 10**10 - 0.5) < 0.05
