"""What the workers of a training agree on: losses, who asks for what, and which checkpoint is the newest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from flows.stages.train.observer import Observer
from flows.stages.train.preemption import Notice
from storage import checkpoints
from storage.checkpoints import Checkpoint
from storage.store import Artifact

Resumed = tuple[Checkpoint, dict[str, Tensor], dict[str, Any]]

DRIVER, SYSTEM = "stopped", "made way"
"""Who asked for an end before the last step: the driver, who means it, or the system, who wants the machine."""


class Wishes(NamedTuple):
    """How many workers ask for each of these after a step."""

    stop: float
    """The training ends, because the driver says so."""
    make_way: float
    """The training ends, because the system wants the machine."""
    ask_ray: float
    """All ask Ray whether they should make way."""
    checkpoint: float
    """A checkpoint is due, whatever the step."""


class Agreement:
    """One of `world` equal workers among the others; rank 0 has the observer."""

    def __init__(self, artifact: Artifact, rank: int, world: int, device: str | torch.device, notice: Notice) -> None:
        self.artifact, self.rank, self.world, self.device, self.notice = artifact, rank, world, device, notice
        self.observer: Observer | None = None
        self.wishes = Wishes(0, 0, 0, 0)

    def summed(self, shares: Tensor) -> Tensor:
        """Losses over all workers."""
        dist.all_reduce(shares)
        return shares

    def exchange(self) -> None:
        """Tells the others what this one wishes; all call it after the same step, so that everybody knows then."""
        wishes = torch.tensor(self._own_wishes(), device=self.device)
        if self.world > 1:
            dist.all_reduce(wishes)
        self.wishes = Wishes(*wishes.tolist())

    def _own_wishes(self) -> Wishes:
        observer = self.observer
        return Wishes(
            stop=float(bool(observer and observer.stop)),
            make_way=float(self.notice.given()),
            ask_ray=float(self.rank == 0 and self.notice.due()),
            checkpoint=float(bool(observer and observer.due())),
        )

    def end(self) -> str:
        """Who wants an end; empty when nobody does."""
        if self.wishes.ask_ray:
            self.notice.ask()
        if self.wishes.stop:
            return DRIVER
        return SYSTEM if self.wishes.make_way else ""

    def newest(self) -> Resumed | None:
        """The newest checkpoint that rank 0 can read. Each worker reads it for itself."""
        found = checkpoints.load_latest(self.artifact) if self.rank == 0 else None
        if self.world == 1:
            return found
        step = torch.tensor([found[0].step if found else -1], device=self.device)
        dist.broadcast(step, 0)
        number = int(step)
        if self.rank and number >= 0:
            checkpoint = checkpoints.at(self.artifact, number)
            found = checkpoint, *checkpoints.load(checkpoint)
        return found

    def several_checkpoints(self) -> bool:
        """Whether there is more than one checkpoint: the only one is never given up."""
        there = len(checkpoints.all_checkpoints(self.artifact)) if self.rank == 0 else 0
        if self.world == 1:
            return there > 1
        count = torch.tensor(float(there), device=self.device)
        dist.broadcast(count, 0)
        return bool(count > 1)

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()
