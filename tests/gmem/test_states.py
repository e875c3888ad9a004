"""States of training as tensors by name."""

from __future__ import annotations

import torch
from torch import nn

from gmem.states import below, load_optimiser_state, optimiser_state


def test_names_lose_only_the_prefix_at_their_beginning() -> None:
    tensors = {"ema.ema.weight": torch.zeros(1), "emax.weight": torch.ones(1), "network.ema.weight": torch.ones(1)}
    assert list(below(tensors, "ema.")) == ["ema.weight"]


def test_an_optimiser_goes_on_as_if_it_had_not_stopped() -> None:
    one, other = _trained(steps=3), _trained(steps=0)
    other[0].load_state_dict(one[0].state_dict())
    live = optimiser_state(one[1], "optimizer.1.")
    saved = {name: value.clone() for name, value in live.items()}  # as a file would hold them
    saved["optimizer.10.0.exp_avg"] = torch.full((2, 3), 9.0)  # another optimiser's
    load_optimiser_state(other[1], saved, "optimizer.1.")
    for network, optimiser in (one, other):
        _step(network, optimiser)
    assert torch.equal(one[0].weight, other[0].weight)


def test_learning_rates_stay_as_they_are() -> None:
    (_, one), (_, other) = _trained(steps=1), _trained(steps=0)
    other.param_groups[0]["lr"] = 0.5
    load_optimiser_state(other, optimiser_state(one, "optimiser."), "optimiser.")
    assert other.param_groups[0]["lr"] == 0.5


def _trained(steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    network = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        _step(network, optimiser)
    return network, optimiser


def _step(network: nn.Linear, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    network(torch.arange(3.0)).square().sum().backward()
    optimiser.step()
