"""Choices whose answer is known: clusters, classes, points far apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmem import subset
from gmem.memory import normalise
from gmem.subset import choose, nearest

METHODS = ["random", "balanced", "medoids", "farthest"]


def clusters(count: int, each: int, spread: float = 0.1, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Snippets float16 [count * each, dim] around so many directions, of many lengths, and which direction each is of."""
    draw = torch.Generator().manual_seed(0)
    owner = torch.randperm(count * each, generator=draw) % count
    directions = torch.linalg.qr(torch.randn(dim, count, generator=draw))[0].T
    near = directions[owner] + spread / dim**0.5 * torch.randn(count * each, dim, generator=draw)
    return (near * (1 + torch.rand(len(near), 1, generator=draw))).half(), owner


@pytest.mark.parametrize("method", ["medoids", "farthest"])
@pytest.mark.parametrize("seed", range(4))
def test_each_cluster_has_one(method: str, seed: int) -> None:
    snippets, owner = clusters(12, 50)
    chosen = choose(snippets, 12, method, seed)
    assert sorted(owner[chosen].tolist()) == list(range(12))


def test_a_medoid_lies_in_the_middle_of_its_cluster() -> None:
    snippets, owner = clusters(5, 101, spread=0.5)
    unit = normalise(snippets)
    for row in choose(snippets, 5, "medoids").tolist():
        mine = unit[owner == owner[row]]
        cosines = mine @ normalise(mine.mean(0))
        assert unit[row] @ normalise(mine.mean(0)) > cosines.quantile(0.95)


def test_clusters_found_by_batches_are_those_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    snippets, owner = clusters(20, 100)
    monkeypatch.setattr(subset, "CLUSTER_ROWS", 500)
    monkeypatch.setattr(subset, "BLOCK", 32 * 300)
    chosen = choose(snippets, 20, "medoids")
    assert sorted(owner[chosen].tolist()) == list(range(20))


def test_medoids_cover_better_than_chance() -> None:
    snippets, _ = clusters(30, 40, spread=1.0)
    by_medoids = nearest(snippets, choose(snippets, 60, "medoids"))[1].mean()
    by_chance = nearest(snippets, choose(snippets, 60, "random"))[1].mean()
    assert by_medoids > by_chance + 0.01


def test_the_farthest_are_those_that_one_pass_a_row_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "CANDIDATES", 16)
    snippets = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    unit = normalise(snippets)
    first = choose(snippets, 1, "farthest", seed=5)
    found = first.tolist()
    cosine = unit @ unit[found[0]]
    while len(found) < 100:
        found.append(int(cosine.argmin()))
        cosine = cosine.maximum(unit @ unit[found[-1]])
    assert choose(snippets, 100, "farthest", seed=5).tolist() == sorted(found)


def test_a_balanced_choice_has_equally_many_of_each_class_as_far_as_there_are() -> None:
    classes = torch.tensor([0] * 50 + [7] * 30 + [3] * 2)
    snippets = torch.randn(82, 4)

    def counts(number: int) -> list[int]:
        kept = classes[choose(snippets, number, "balanced", classes=classes)]
        return [int((kept == label).sum()) for label in (0, 7, 3)]

    assert counts(6) == [2, 2, 2] and counts(22) == [10, 10, 2] and counts(82) == [50, 30, 2]
    assert sorted(counts(2)) == [0, 1, 1], "fewer than classes"
    assert sorted(counts(7)) == [2, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_is_a_function_of_snippets_number_and_seed(method: str) -> None:
    snippets, owner = clusters(6, 40, spread=2.0)
    chosen = [choose(snippets, 17, method, seed, owner).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(each == sorted(set(each)) and len(each) == 17 for each in chosen)


@pytest.mark.parametrize("method", METHODS)
def test_all_may_be_kept_and_one(method: str) -> None:
    snippets, owner = clusters(3, 10)
    assert choose(snippets, 30, method, 0, owner).tolist() == list(range(30))
    assert len(choose(snippets, 1, method, 0, owner)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_snippets_that_are_all_alike_are_no_trouble(method: str) -> None:
    snippets, classes = torch.ones(40, 8), torch.zeros(40, dtype=torch.long)
    assert len(set(choose(snippets, 15, method, 0, classes).tolist())) == 15


@pytest.mark.parametrize("method", ["random", "balanced"])
def test_fewer_are_a_part_of_more(method: str) -> None:
    snippets, owner = clusters(4, 25)
    few, many = (set(choose(snippets, number, method, 2, owner).tolist()) for number in (10, 50))
    assert few < many


def test_a_chosen_row_is_its_own_nearest_and_others_have_the_nearest_there_is() -> None:
    snippets, owner = clusters(4, 20)
    snippets[9] = snippets[5]
    chosen = torch.tensor([5, 9, *(int((owner == label).nonzero()[-1]) for label in range(4))])
    place, cosine = nearest(snippets, chosen)
    assert place[chosen].tolist() == list(range(6))
    assert torch.equal(owner[chosen[place]], owner)
    expected = (normalise(snippets) @ normalise(snippets[chosen]).T).max(1).values
    assert torch.allclose(cosine, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "method", "words"),
    [
        (31, "random", "31 of 30 snippets cannot be kept; give a number from 1 to 30"),
        (0, "medoids", "give a number from 1 to 30"),
        (3, "nearest", "use random, balanced, medoids or farthest"),
        (3, "balanced", "needs the classes"),
    ],
)
def test_what_cannot_be_is_told(count: int, method: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(clusters(3, 10)[0], count, method)
