"""States of training as tensors by name, as checkpoints hold them: `<part>.<name>`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under what follows it.

    >>> below({"ema.bias": torch.zeros(2), "network.bias": torch.ones(2)}, "ema.")
    {'bias': tensor([0., 0.])}
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = value
    return found


def optimiser_state(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """What an optimiser remembers of its parameters, as `<prefix><number of the parameter>.<name>`."""
    tensors: dict[str, Tensor] = {}
    for number, memory in optimiser.state_dict()["state"].items():
        for name, value in memory.items():
            tensors[f"{prefix}{number}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimiser_state(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Puts an `optimiser_state` back, found among the tensors; learning rates and the like stay as they are."""
    memories: dict[int, dict[str, Tensor]] = {}
    for path, value in below(tensors, prefix).items():
        number, name = path.split(".", 1)
        memories.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": memories, "param_groups": groups})
