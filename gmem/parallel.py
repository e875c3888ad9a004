"""How a network is trained by several workers, inside a process group that somebody else has made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


class Alone:
    """One worker, and what the ways of several have in common."""

    ranks = 1
    sharded = False

    def wrap(self, module: nn.Module, layers: nn.ModuleList, bf16: bool = False) -> nn.Module:
        """The module to call in training, where it is on the device; `layers` are those of its parts that take turns, and
        `bf16` says whether they multiply in that. Optimisers come after it."""
        return module

    @contextmanager
    def waiting(self, module: nn.Module) -> Iterator[None]:
        """Meanwhile gradients are accumulated, and not exchanged."""
        yield

    def local(self, tensor: Tensor) -> Tensor:
        """This worker's share of a parameter, or of what belongs to one: a view."""
        return tensor

    def whole(self, tensor: Tensor) -> Tensor:
        """The same of all workers, who call this together."""
        return tensor

    def placed(self, value: Tensor, like: Tensor) -> Tensor:
        """A whole tensor cut as `like` is."""
        return value.to(like.device)


class Replicated(Alone):
    """Every worker holds the whole network; gradients are averaged.

    On the CPU they travel in the same groups from the first step on, so that a resumed training rounds alike: without
    `find_unused_parameters` they are grouped anew after the first step.
    """

    def __init__(self) -> None:
        self.ranks = dist.get_world_size()

    def wrap(self, module: nn.Module, layers: nn.ModuleList, bf16: bool = False) -> nn.Module:
        on_cpu = next(module.parameters()).device.type == "cpu"
        return DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=on_cpu, gradient_as_bucket_view=True
        )

    @contextmanager
    def waiting(self, module: nn.Module) -> Iterator[None]:
        with cast(DistributedDataParallel, module).no_sync():
            yield


class Sharded(Alone):
    """Every worker holds its share of weights, gradients, average and optimiser, and fetches a layer when it is needed
    (FSDP2); gradients are averaged. Sharding moves a layer to the process group's device.

    Layers that multiply in bf16 travel in it, which halves what is fetched; shares, gradients' sums and what is outside
    the layers, time's embedding above all, stay in float32.
    """

    sharded = True

    def __init__(self) -> None:
        self.ranks = dist.get_world_size()

    def wrap(self, module: nn.Module, layers: nn.ModuleList, bf16: bool = False) -> nn.Module:
        travels = torch.bfloat16 if bf16 else None
        policy = MixedPrecisionPolicy(travels, torch.float32, cast_forward_inputs=False)
        for layer in layers:
            fully_shard(layer, mp_policy=policy)
        return cast(nn.Module, fully_shard(module))

    @contextmanager
    def waiting(self, module: nn.Module) -> Iterator[None]:
        sharded = cast(FSDPModule, module)
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def placed(self, value: Tensor, like: Tensor) -> Tensor:
        value = value.to(like.device)
        if not isinstance(like, DTensor):
            return value
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # all have read it
