from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gmem import memory

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")
def test_published_factorised_bank():
    golden = load_file(GOLDEN / "bank_svd.safetensors")
    snippets = golden["input/bank"]
    components = memory.principal_components(snippets.split(64), 16)
    codes = components.project(snippets)
    assert (components.reconstruct(codes) - golden["output/decoded_rank16"]).abs().max() < 1e-5
    mixed = components.reconstruct(0.3 * codes[1] + 0.7 * codes[4])
    assert (mixed - golden["output/interpolated_rows_1_4_alpha_0.3"]).abs().max() < 1e-5
    added = components.reconstruct(components.project(snippets[3:4] + 0.01))[0]
    assert (added - golden["output/added_exact_of_row3_plus_0.01"]).abs().max() < 1e-5


def test_unit_length_in_float32_and_zero_stays_zero():
    snippet = memory.normalise(torch.stack([torch.randn(8), torch.zeros(8)]).half())
    assert snippet.dtype == torch.float32
    torch.testing.assert_close(snippet.norm(dim=1), torch.tensor([1.0, 0.0]))


def test_mask_drops_its_share_and_keeps_the_mean():
    uniform = torch.rand(100, 1000, generator=torch.Generator().manual_seed(0))
    masked = memory.mask(torch.ones(100, 1000), uniform, 0.4)
    assert abs((masked == 0).float().mean() - 0.4) < 0.01
    assert abs(masked.mean() - 1) < 0.01
    assert torch.equal(memory.mask(torch.ones(2, 3), torch.rand(2, 3), 0.0), torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask rate"):
        memory.mask(torch.ones(1, 1), torch.rand(1, 1), 1.0)


def test_drop_takes_whole_snippets():
    dropped = memory.drop(torch.ones(3, 4), torch.tensor([0.05, 0.1, 0.9]), 0.1)
    assert dropped.sum(1).tolist() == [0, 4, 4]


def test_components_equal_those_of_the_singular_values_in_one_or_many_pieces():
    rows = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13) + 5
    components = memory.principal_components(rows.split(64), 4)
    rest = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    best = rest.U[:, :4] * rest.S[:4] @ rest.Vh[:4] + rows.mean(0)
    torch.testing.assert_close(components.reconstruct(components.project(rows)), best, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(components.basis @ components.basis.T, torch.eye(4), atol=1e-5, rtol=0)
    first, second = memory.Covariance(12), memory.Covariance(12)
    first.update(rows[:150])
    second.update(rows[150:].reshape(50, 5, 12))
    first.merge(second)
    torch.testing.assert_close(first.principal_components(4).basis, components.basis)


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match="rank 13"):
        memory.principal_components([torch.randn(20, 12)], 13)
    with pytest.raises(ValueError, match="at least 2"):
        memory.principal_components([], 2)
    with pytest.raises(ValueError, match="at least 2"):
        memory.principal_components([torch.randn(1, 12)], 2)


def test_noise_moves_a_snippet_as_far_as_it_is_long() -> None:
    """Noise of length s across a unit vector turns it by the angle of tangent s, whatever length it had."""
    draw = torch.Generator().manual_seed(0)
    snippet, normal = (torch.randn(20, 4096, generator=draw) for _ in range(2))
    for size in (0.0, 0.5, 2.0):
        moved = memory.perturb(3 * snippet, normal, size)
        torch.testing.assert_close(moved.norm(dim=1), torch.ones(20))
        cosine = (moved * memory.normalise(snippet)).sum(1)
        torch.testing.assert_close(cosine, torch.full((20,), (1 + size**2) ** -0.5), atol=0.04, rtol=0)
    with pytest.raises(ValueError, match="the size of noise is -1"):
        memory.perturb(snippet, normal, -1)
