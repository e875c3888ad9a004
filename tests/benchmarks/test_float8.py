"""The arithmetic of float8 against that of fp32, on whatever device is there: every one that multiplies float8."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gmem.network import Network
from gmem.settings import NetworkConfig, SizeName
from tests.benchmarks.float8 import GRADIENTS, VALUES, Float8Linear, in_float8, product, scaled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("kind", [VALUES, GRADIENTS])
@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_scaled_numbers_fill_the_range(kind: torch.dtype, factor: float) -> None:
    numbers = factor * torch.linspace(-1, 1, 64).reshape(4, 16)
    small, scale = scaled(numbers, kind)
    assert small.dtype == kind and small.float().abs().max() == torch.finfo(kind).max
    assert apart(small.float() * scale, numbers) < (0.03 if kind == VALUES else 0.06)
    assert scaled(torch.zeros(16, 16), kind)[0].float().eq(0).all()


def test_a_product_is_that_of_fp32_but_for_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 64, generator=random).to(DEVICE) for rows in (32, 48))
    assert apart(product(a, VALUES, b, VALUES), a @ b.T) < 0.05
    assert apart(product(1e4 * a, GRADIENTS, b, VALUES), 1e4 * a @ b.T) < 0.08


def test_a_layer_learns_as_it_did() -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(64, 32, device=DEVICE), torch.randn(4, 8, 64, device=DEVICE, requires_grad=True)

    def found() -> list[torch.Tensor]:
        output = layer(values)
        gradients = torch.autograd.grad(output.square().sum(), (values, *layer.parameters()))
        return [output.detach(), *gradients]

    plain, layer.__class__ = found(), Float8Linear
    small = found()
    assert [(each.shape, each.dtype) for each in small] == [(each.shape, each.dtype) for each in plain]
    assert 0 < max(apart(one, other) for one, other in zip(small, plain, strict=True)) < 0.12


def test_blocks_of_the_network_go_by_float8_and_keep_their_parameters() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig.of("T", latent_channels=4, latent_size=4)).to(DEVICE)
    names = list(network.state_dict())
    x, t = torch.randn(4, 4, 4, 4, device=DEVICE), torch.rand(4, device=DEVICE)
    with torch.no_grad():
        before = network(x, t)
        assert in_float8(network) == 2 * network.config.depth  # its hidden width of 682 does not fit
        assert 0 < apart(network(x, t), before) < 0.2
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("size", ["B", "XL"])
def test_every_token_layer_of_what_is_measured_fits(size: SizeName) -> None:
    """Without numbers, for lack of time; forward and backward, under autocast as in training."""
    with FakeTensorMode():
        network = Network(NetworkConfig.of(size, latent_channels=32, latent_size=16))
        assert in_float8(network) == 4 * network.config.depth
        block, width = network.blocks[0], network.config.width
        with torch.autocast("cpu", torch.bfloat16):
            output = block(torch.rand(2, 256, width), torch.rand(2, width), network.feat_rope.turns())
        output.float().sum().backward()
        assert output.shape == (2, 256, width) and block.attn.qkv.weight.grad.dtype == torch.float32
