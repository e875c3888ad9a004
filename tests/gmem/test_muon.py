"""Orthogonal updates, and their size."""

from __future__ import annotations

import pytest
import torch

from gmem.muon import Muon, as_adam, orthogonal


def test_the_orthogonal_update_has_singular_values_near_one() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    for update in (orthogonal(matrix), orthogonal(matrix.T)):
        values = torch.linalg.svdvals(update)
        assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (8, 4, 3, 3)])
def test_an_update_scaled_for_adam_has_entries_of_its_size(shape: tuple[int, ...]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([parameter], lr=0.5, scale=as_adam).step()
    size = float(parameter.detach().square().mean().sqrt())
    assert size == pytest.approx(0.5 * 0.2, rel=0.25)


def test_weights_decay_beside_the_update() -> None:
    plain, decayed = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    for parameter, decay in ((plain, 0.0), (decayed, 0.1)):
        parameter.grad = torch.eye(4)
        Muon([parameter], lr=0.5, weight_decay=decay).step()
    torch.testing.assert_close(plain - decayed, torch.full((4, 4), 0.05))
