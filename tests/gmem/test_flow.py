from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gmem import flow
from gmem.network import Network
from gmem.settings import NetworkConfig

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")
@torch.no_grad()
def test_published_losses():
    weights = load_file(GOLDEN / "network_tiny.safetensors")
    network = Network(NetworkConfig(6, 96, 4, latent_channels=8, latent_size=4, projection_dim=768))
    network.load_state_dict({k.removeprefix("weights/"): v.float() for k, v in weights.items() if "weights/" in k})
    golden = load_file(GOLDEN / "losses_tiny.safetensors")
    latent, noise, time, snippet, tokens = (
        golden[f"input/{name}"] for name in ("latent", "noise", "time", "snippet", "patch_tokens")
    )
    predicted = network.forward_training(flow.interpolate(latent, noise, time), time, snippet)
    losses = flow.losses(predicted[0], flow.target(latent, noise), predicted[1], tokens, cosine=1.0, align=0.5)
    assert (losses.velocity - golden["output/velocity_mse_per_sample"]).abs().max() < 5e-6
    assert (losses.cosine - golden["output/cosine_per_sample"]).abs().max() < 5e-6
    assert (losses.projection.mean() - golden["output/projection"]).abs().max() < 5e-6
    assert torch.allclose(losses.total, losses.velocity + losses.cosine + 0.5 * losses.projection)


def test_the_path_goes_from_noise_to_data_at_its_velocity():
    latent, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(flow.interpolate(latent, noise, torch.zeros(2, dtype=torch.float64)), noise)
    assert torch.equal(flow.interpolate(latent, noise, torch.ones(2, dtype=torch.float64)), latent)
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    slope = (flow.interpolate(latent, noise, t + 1e-3) - flow.interpolate(latent, noise, t)) / 1e-3
    torch.testing.assert_close(slope, flow.target(latent, noise))


def test_times_follow_their_distribution():
    normal = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    uniform = flow.times(normal, "uniform")
    torch.testing.assert_close(
        uniform.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0
    )
    logit = torch.logit(flow.times(normal, "logit-normal").double())
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03
    with pytest.raises(ValueError, match="no time sampling"):
        flow.times(normal, "cosine")


def test_shift_for_many_dimensions_raises_noise_levels():
    t, dimensions = torch.linspace(0, 1, 11, dtype=torch.float64), 32 * 32 * 32
    r = (dimensions / 4096) ** 0.5
    noise_level = 1 - t
    expected = r * noise_level / (1 + (r - 1) * noise_level)
    torch.testing.assert_close(1 - flow.shift(t, flow.dimension_shift(dimensions)), expected)
    assert torch.equal(flow.shift(t, flow.dimension_shift(4096)), t)
    torch.testing.assert_close(flow.shift(flow.shift(t, 0.3), 1 / 0.3), t)


def test_perfect_predictions_cost_nothing_but_the_alignment_bonus():
    velocity, tokens = torch.randn(2, 3, 4, 4), torch.randn(2, 16, 8)
    losses = flow.losses(velocity, velocity, 3 * tokens, tokens, cosine=1.0, align=0.5)
    assert losses.velocity.abs().max() == 0 and losses.cosine.abs().max() < 1e-6
    torch.testing.assert_close(losses.projection, -torch.ones(2))
    assert flow.losses(velocity, velocity, cosine=1.0, align=0.5).projection.abs().max() == 0


def test_weights_of_the_parts():
    velocity, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    plain = flow.losses(velocity, target, cosine=0.0, align=0.5)
    assert torch.equal(plain.total, plain.velocity)
    halved = flow.losses(velocity, target, weight=torch.tensor([0.5, 1.0]), cosine=1.0, align=0.5)
    torch.testing.assert_close(halved.velocity / plain.velocity, torch.tensor([0.25, 1.0]))
    assert flow.data_weight(torch.tensor([0.0, 0.9, 0.975])).tolist() == pytest.approx([1, 1, 0.5], rel=1e-5)


def test_tokens_are_averaged_over_squares():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert flow.match_tokens(tokens, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert flow.match_tokens(tokens, 16) is tokens
    with pytest.raises(ValueError, match="do not fit"):
        flow.match_tokens(torch.zeros(1, 9, 1), 4)
