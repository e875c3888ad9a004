import pytest
import torch

from gmem import noise


def test_a_place_has_its_own_draws_whatever_is_asked_with_it():
    together = noise.normals(7, noise.SAMPLING, 3, range(10), (2, 4))
    assert torch.equal(noise.normals(7, noise.SAMPLING, 3, [9, 5], (2, 4)), together[[9, 5]])
    assert noise.normals(7, noise.SAMPLING, 3, [], (2, 4)).shape == (0, 2, 4)


def test_streams_differ_by_seed_purpose_step_and_place():
    keys = [(7, 1, 0, 0), (8, 1, 0, 0), (7, 2, 0, 0), (7, 1, 1, 0), (7, 1, 0, 1)]
    draws = torch.tensor([noise.stream(*key).random() for key in keys])
    assert len(draws.unique()) == len(keys)


def test_draws_are_standard_normal_and_unrelated():
    draws = noise.normals(0, noise.TRAINING, 0, range(2000), (64,))
    assert draws.mean().abs() < 0.01 and abs(draws.std() - 1) < 0.01
    assert torch.corrcoef(draws[:50]).fill_diagonal_(0).abs().max() < 0.6


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        noise.stream(-1, 1, 0, 0)
