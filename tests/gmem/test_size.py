"""What is counted by arithmetic is what the network has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gmem import network
from gmem.settings import NetworkConfig
from gmem.size import parameter_count


@pytest.mark.parametrize("size", ["T", "S", "XL"])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"patch": 2, "projection_dim": 768},
        {"conditioning": "label", "classes": 10},
        {"conditioning": "none", "projection_dim": 100, "projection_hidden": 300, "latent_size": 8},
    ],
)
def test_parameters_are_counted_without_making_them(size: Any, choices: dict[str, Any]) -> None:
    config = NetworkConfig.of(size, **choices)
    with torch.device("meta"):
        made = network.Network(config)
    assert parameter_count(config) == network.parameter_count(made)


def test_the_published_figure() -> None:
    assert parameter_count(NetworkConfig.of("XL", projection_dim=768)) == pytest.approx(683.12e6, rel=1e-4)
