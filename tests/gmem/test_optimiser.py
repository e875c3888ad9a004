"""Which weights each optimiser moves, and that what they remember goes by name."""

from __future__ import annotations

import torch

from gmem.network import Network
from gmem.optimiser import Optimiser
from gmem.settings import LearnerConfig, NetworkConfig

CONFIG = LearnerConfig(lr=1e-2, optimiser="muon")
PLAIN = torch.tensor(1.0), torch.tensor(True)
"""Gradients as they are, and trusted."""


def make_network() -> Network:
    torch.manual_seed(0)
    network = Network(NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, snippet_dim=8))
    for number, parameter in enumerate(network.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return network


def trained(network: Network) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def test_muon_takes_the_matrices_of_attention_and_of_swiglu() -> None:
    network = make_network()
    optimiser = Optimiser(trained(network), CONFIG)
    parts = ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")
    assert optimiser.matrices.keys() == {f"blocks.{block}.{part}.weight" for block in (0, 1) for part in parts}
    before = {name: p.detach().clone() for name, p in trained(network).items()}
    optimiser.set_rate(1e-3)
    optimiser.step(*PLAIN)
    for name, p in trained(network).items():
        size = float((p.detach() - before[name]).square().mean().sqrt())
        expected = 2e-4 if name in optimiser.matrices else 1e-3  # Adam's first step is of the learning rate
        assert 0.7 * expected < size < 1.3 * expected, name


def test_what_is_remembered_goes_on_with_the_same_bits() -> None:
    first, second = make_network(), make_network()
    one, other = (Optimiser(trained(network), CONFIG) for network in (first, second))
    one.step(*PLAIN)
    moments = {name: value.clone() for name, value in one.moments().items()}
    assert {name: value.shape for name, value in moments.items()} == {n: p.shape for n, p in one.shapes().items()}
    second.load_state_dict(first.state_dict())
    other.load(moments, 1, lambda value, like: value.to(like.device))
    one.step(*PLAIN)
    other.step(*PLAIN)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other.load({}, 0, lambda value, like: value)
    assert all(not optimiser.state for optimiser in other.each)
