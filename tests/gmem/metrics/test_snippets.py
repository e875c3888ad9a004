"""Drawn snippets judged: good ones, copies, and ones from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmem.memory import normalise
from gmem.metrics.snippets import snippet_quality


def cloud(count: int, seed: int, centre: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * (torch.tensor([centre, 0.0, 0.0, 0.0]) + 0.4 * torch.randn(count, 4, generator=generator))


def test_fresh_snippets_of_the_same_distribution_are_as_good_as_real_ones() -> None:
    found = snippet_quality(cloud(300, 0), cloud(600, 1), cloud(300, 2))
    assert found is not None
    assert found.frechet == pytest.approx(found.frechet_of_real, abs=0.01)
    assert found.sliced == pytest.approx(found.sliced_of_real, abs=0.01)
    assert found.coverage > 0.9 and found.density == pytest.approx(1, abs=0.2)
    assert found.nearest == pytest.approx(found.nearest_of_real, rel=0.2)


def test_copies_are_nearer_than_held_out_ones_and_lengths_do_not_count() -> None:
    learned = cloud(300, 1)
    found = snippet_quality(5 * learned, learned, cloud(300, 2))
    assert found is not None and found.nearest == pytest.approx(0, abs=1e-6) and found.nearest_of_real > 0.01
    assert found.frechet == pytest.approx(found.frechet_of_real, rel=1e-4)


def test_snippets_from_elsewhere_are_far_away() -> None:
    found = snippet_quality(cloud(300, 0, centre=-1.0), cloud(300, 1), cloud(300, 2))
    assert found is not None and found.frechet > 20 * found.frechet_of_real and found.coverage < 0.2


def test_it_does_not_depend_on_order_of_what_was_learned_and_needs_a_few() -> None:
    learned, held_out = cloud(100, 1), cloud(100, 2)
    one = snippet_quality(cloud(100, 0), learned, held_out)
    other = snippet_quality(normalise(cloud(100, 0)), learned.half(), held_out)
    assert one is not None and other is not None and one.frechet == pytest.approx(other.frechet, rel=0.05)
    assert snippet_quality(cloud(5, 0), learned, held_out) is None
