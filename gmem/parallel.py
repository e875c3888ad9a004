"""How a network is trained by several workers, inside a process group that somebody else has made."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def replicated(module: nn.Module) -> nn.Module:
    """Every worker holds the whole network; gradients are averaged.

    On the CPU they travel in the same groups from the first step on, so that a resumed training rounds alike: without
    `find_unused_parameters` they are grouped anew after the first step.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=on_cpu)
