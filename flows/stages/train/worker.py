"""What one training worker does, from the newest checkpoint to the last step."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from flows.cluster.workers import set_threads_and_device
from flows.engine.context import Context
from flows.stages.train.observer import Observer
from flows.stages.train.preemption import Notice
from flows.stages.train.prefetch import Ahead
from flows.stages.train.setup import batch_of, components_of, make_network, open_data
from gmem.batch import Batch, Draws, draw
from gmem.guard import Guard
from gmem.learner import Learner
from gmem.network import Network
from gmem.parallel import Replicated, Sharded
from storage import checkpoints
from storage.checkpoints import Checkpoint
from storage.errors import StoreUnreachable
from storage.tables.training_data import BatchOrder

Resumed = tuple[Checkpoint, dict[str, Tensor], dict[str, Any]]

SKIPS_ALLOWED, RETURNS_ALLOWED = 5, 3
DRIVER, SYSTEM = "stopped", "made way"
"""Who asked for an end before the last step: the driver, who means it, or the system, who wants the machine."""


def loop(config: dict[str, Any]) -> None:
    """The function Ray Train runs on every worker."""
    channel = config["channel"]
    if reason := ray.get(channel.failed.remote()):
        raise ValueError(reason)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device, context = set_threads_and_device(config["threads"]), Context(**config["context"])
    try:
        Worker(context, channel, rank, world, device, Notice()).run()
    except ValueError as error:
        if not isinstance(error, StoreUnreachable):  # which may come back
            ray.get(channel.fail.remote(str(error)))
        raise
    finally:
        context.run.close()


class Worker:
    """One of `world` equal workers. All go through the same steps and decide alike; rank 0 also observes and saves."""

    def __init__(self, context: Context, channel: Any, rank: int, world: int, device: str, notice: Notice) -> None:
        self.context, self.recipe, self.rank, self.world, self.notice = context, context.recipe, rank, world, notice
        self.artifact, train = context.artifact("training"), context.recipe.train
        self.data = open_data(context, "train")
        self.order = BatchOrder(train.seed, self.data.pictures, train.batch, context.recipe.data.mirror)
        self.guard = Guard(train.spike, SKIPS_ALLOWED)
        self.attempt = 0  # of drawing random numbers, one more each time the training goes back
        self.returned_to, self.failed_at, self.returns = -1, -1, 0
        self.signals = torch.zeros(4)
        self.learner = Learner(
            self._fresh(),
            train,
            device,
            (Sharded if train.sharded else Replicated)() if world > 1 else None,
            self._summed if world > 1 else None,
            observed=rank == 0,
            components=components_of(self.data),
            micro_batch=train.micro_batch,
            compile=train.compile,
        )
        self.observer = Observer(context, channel, self.data, self.learner) if rank == 0 else None
        if found := self._newest():
            self._restore(found)

    def _fresh(self) -> Network:
        torch.manual_seed(self.recipe.train.seed)
        return make_network(self.recipe, self.data)

    # --- the story ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step, or until somebody asks for an end."""
        steps, why, clock = self.recipe.train.steps, "", Clock()
        if self.observer:
            self.observer.begin()
        # On a CPU the thread would take from the step what it gives: 2.4 steps/s instead of 3.5, measured on two cores.
        with closing(Ahead(self._share, 0 if self.learner.device.type == "cpu" else steps)) as ahead:
            while self.learner.steps < steps and not why:
                batch, draws = ahead.take(self.learner.steps, self.attempt)
                clock.lap("data")
                result = self.learner.step(batch, draws, self.recipe.train.batch, self.guard.limit)
                clock.lap("compute")
                if self.guard.judge(result["velocity"], bool(result["skipped"])):
                    self._go_back()
                else:
                    self._observe(result, clock)
                why = self._asked()
                clock.lap("rest")
        if why:
            self.learner.gather()
        if self.observer:
            self.observer.finish(self._progress(), why)

    def _share(self, step: int, attempt: int) -> tuple[Batch, Draws]:
        """This worker's rows of the global batch of a step, and their random numbers: ready to be copied to a GPU."""
        total = self.recipe.train.batch
        rows = share(total, self.rank, self.world)
        batch = batch_of(self.recipe, self.data, self.order.ids(step)[rows])
        shape, width = tuple(batch.latent.shape[1:]), batch.snippet.shape[1]
        draws = draw(self.recipe.train.seed, step, total, shape, width, rows, attempt)
        return (batch.pinned(), draws.pinned()) if self.learner.device.type == "cuda" else (batch, draws)

    def _observe(self, result: dict[str, float], clock: Clock) -> None:
        if seen := self._to_be_seen():
            self.learner.gather()
        if self.observer is None:
            return
        train, done = self.recipe.train, self.learner.steps
        if result["skipped"]:
            reason = f"velocity loss {result['velocity']:.4g}, gradient norm {result['grad_norm']:.4g}"
            text = f"step {done - 1} skipped: {reason}, median loss {self.guard.median:.4g}"
            self.observer.event("skipped", done - 1, text, say=self.guard.bad == 1)
        self.observer.advance(result["total"])
        if done % train.log_every == 0 or done == train.steps:
            self.observer.log(result, {"images_per_second": clock.rate() * train.batch} | clock.shares())
        self.observer.look(self._progress(), ready=seen and not self.guard.bad)

    def _to_be_seen(self) -> bool:
        """Whether rank 0 may want the weights after this step: what is sharded is gathered by all."""
        train, done, due = self.recipe.train, self.learner.steps, bool(self.signals[3])
        every = (train.held_out_every, train.sample_every, train.distance_every, train.checkpoint_every)
        whole = not self.learner.parallel.sharded
        return whole or due or done == train.steps or any(steps and done % steps == 0 for steps in every)

    # --- what all workers agree on -----------------------------------------------------------------------------------

    def _summed(self, shares: Tensor) -> Tensor:
        """Losses over all workers; who asks for what travels with them, so that everybody knows after the same step."""
        values = torch.cat([shares, torch.tensor(self._wishes(), device=shares.device)])
        dist.all_reduce(values)
        self.signals = values[len(shares) :]
        return values[: len(shares)]

    def _wishes(self) -> list[float]:
        """That the training stops, that it makes way, that Ray is asked whether it should, that a checkpoint is due."""
        observer = self.observer
        return [
            float(bool(observer and observer.stop)), float(self.notice.given()),
            float(self.rank == 0 and self.notice.due()), float(bool(observer and observer.due())),
        ]  # fmt: skip

    def _asked(self) -> str:
        """Who wants an end; empty when nobody does."""
        stop, give_way, ask, _ = self.signals.tolist() if self.world > 1 else self._wishes()
        if ask:
            self.notice.ask()
        return DRIVER if stop else SYSTEM if give_way else ""

    def _newest(self) -> Resumed | None:
        """The newest checkpoint that rank 0 can read. Each worker reads it for itself."""
        found = checkpoints.load_latest(self.artifact) if self.rank == 0 else None
        if self.world == 1:
            return found
        step = torch.tensor([found[0].step if found else -1], device=self.learner.device)
        dist.broadcast(step, 0)
        if self.rank and (number := int(step)) >= 0:
            checkpoint = checkpoints.at(self.artifact, number)
            found = checkpoint, *checkpoints.load(checkpoint)
        return found

    # --- starting, and starting again --------------------------------------------------------------------------------

    def _progress(self) -> dict[str, Any]:
        return {"guard": self.guard.state(), "attempt": self.attempt}

    def _restore(self, found: Resumed) -> None:
        _, tensors, progress = found
        self.learner.load_state(tensors, progress["learner"])
        self.guard.load_state(progress["guard"])
        self.attempt = max(self.attempt, progress["attempt"])

    def _go_back(self) -> None:
        """To the newest checkpoint, from which other random numbers are drawn; to the one before when that fails too.

        The pictures stay in their order. Where a kill makes all this happen again, it happens alike, since whatever it
        depends on is in the checkpoint.
        """
        failed, found = self.learner.steps, self._newest_good()
        self.returns = 1 if found and found[0].step > self.failed_at else self.returns + 1
        if self.returns > RETURNS_ALLOWED:
            raise ValueError(
                f"the training does not get beyond step {failed}: going back {RETURNS_ALLOWED} times did not help; "
                "lower train.lr or train.clip, and look at the table of events in MLflow"
            )
        if found and found[0].step == self.returned_to and self._others():
            self._drop(found[0])
            found = self._newest()
        if found:
            self._restore(found)
        else:
            self.learner.restart(self._fresh())
            self.guard.load_state(Guard(0, 0).state())
        self.attempt += 1
        self.guard.bad, self.failed_at = 0, max(self.failed_at, failed)
        self.returned_to = self.learner.steps if found else -1
        if self.observer:
            text = f"{SKIPS_ALLOWED + 1} bad steps in a row at step {failed}: back to step {self.learner.steps}"
            self.observer.event("returned", failed, f"{text}, with other random numbers (attempt {self.attempt + 1})")
            self.observer.begin()

    def _newest_good(self) -> Resumed | None:
        """The newest that was not taken between bad steps, when the training was asked to stop; those go."""
        while (found := self._newest()) and found[2]["guard"]["bad"]:
            self._drop(found[0])
        return found

    def _others(self) -> bool:
        """Whether there is more than one checkpoint: the only one is never given up."""
        there = torch.tensor(len(checkpoints.all_checkpoints(self.artifact)) if self.rank == 0 else 0.0)
        if self.world > 1:
            dist.broadcast(there := there.to(self.learner.device), 0)
        return bool(there > 1)

    def _drop(self, checkpoint: Checkpoint) -> None:
        """A checkpoint that does not lead on: it was taken too late to be good."""
        if self.world > 1:
            dist.barrier()  # everybody has read it
        if self.observer:
            checkpoints.remove(checkpoint.uri)
            self.observer.event(
                "dropped", checkpoint.step, f"the checkpoint of step {checkpoint.step} does not lead on"
            )


def share(total: int, rank: int, world: int) -> slice:
    """The rows of a batch that are this worker's; shares differ by one row where they do not divide it."""
    return slice(total * rank // world, total * (rank + 1) // world)


class Clock:
    """Where the time goes between two logs."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.spent: dict[str, float] = {}
        self.steps = 0

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.last
        self.last = now
        self.steps += part == "compute"

    def rate(self) -> float:
        """Steps a second since the last log, without the time for measuring, showing and saving."""
        return self.steps / max(self.spent["data"] + self.spent["compute"], 1e-9)

    def shares(self) -> dict[str, float]:
        """Share of each part, and a new start."""
        total = max(sum(self.spent.values()), 1e-9)
        shares = {f"time/{part}": seconds / total for part, seconds in self.spent.items()}
        self.spent, self.steps, self.last = {}, 0, time.monotonic()
        return shares
