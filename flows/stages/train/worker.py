"""What one training worker does, from the newest checkpoint to the last step."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import ray
import ray.train
import torch
from torch import Tensor

from flows.cluster.workers import set_threads_and_device
from flows.engine.context import Context
from flows.refusals import REFUSALS
from flows.stages.train.agreement import Agreement
from flows.stages.train.clock import Clock
from flows.stages.train.observer import Observer
from flows.stages.train.preemption import Notice
from flows.stages.train.prefetch import Ahead
from flows.stages.train.profiling import StepProfile
from flows.stages.train.recovery import SKIPS_ALLOWED, Recovery
from flows.stages.train.setup import components_of, make_network, open_data, to_batch
from gmem.batch import Batch, Draws, draw
from gmem.guard import Guard
from gmem.learner import Learner, told
from gmem.network import Network
from gmem.parallel import Replicated, Sharded
from storage.errors import Refused
from storage.tables.order import BatchOrder
from storage.tables.training_data import StepReader


def loop(config: dict[str, Any]) -> None:
    """The function Ray Train runs on every worker."""
    channel = config["channel"]
    if reason := ray.get(channel.failed.remote()):
        raise Refused(reason)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device, context = set_threads_and_device(config["threads"]), Context(**config["context"])
    try:
        Worker(context, channel, rank, world, device, Notice()).run()
    except REFUSALS as error:
        ray.get(channel.fail.remote(str(error)))
        raise
    finally:
        context.run.close()
    if rank == 0:
        ray.get(channel.rest.remote())


class Worker:
    """One of `world` equal workers. All go through the same steps and decide alike; rank 0 also observes and saves."""

    def __init__(self, context: Context, channel: Any, rank: int, world: int, device: str, notice: Notice) -> None:
        self.context, self.recipe, self.rank, self.world = context, context.recipe, rank, world
        train = context.recipe.train
        self.data = open_data(context, "train")
        order = BatchOrder(train.seed, self.data.pictures, train.batch, context.recipe.data.mirror)
        self.reader = StepReader(self.data, order, share(train.batch, rank, world))
        self.guard = Guard(train.spike, SKIPS_ALLOWED, device)
        self.agreement = Agreement(context.artifact("training"), rank, world, device, notice)
        self.learner = Learner(
            self._fresh(),
            train,
            device,
            (Sharded if train.sharded else Replicated)() if world > 1 else None,
            self.agreement.summed if world > 1 else None,
            observed=rank == 0,
            components=components_of(self.data),
            micro_batch=train.micro_batch,
            compile=train.compile,
            recompute=train.recompute,
        )
        self.unread: list[dict[str, Tensor]] = []
        self.clock = Clock()
        self.observer = Observer(context, channel, self.data, self.learner, self.clock) if rank == 0 else None
        self.agreement.observer = self.observer
        self.recovery = Recovery(self.learner, self.guard, self.agreement, self._fresh)
        self.clock.trained = self.recovery.resume()

    def _fresh(self) -> Network:
        torch.manual_seed(self.recipe.train.seed)
        return make_network(self.recipe, self.data)

    def run(self) -> None:
        """Trains to the last step, or until somebody asks for an end."""
        steps, why, clock = self.recipe.train.steps, "", self.clock
        if self.observer:
            self.observer.begin()

        # Batches are made ahead for a GPU. On a CPU the thread would take from the step what it gives: 2.4 steps/s
        # instead of 3.5, measured on two cores.
        ahead_of = 0 if self.learner.device.type == "cpu" else steps
        with closing(Ahead(self._share, ahead_of)) as ahead, self._profiled() as profiled:
            while self.learner.steps < steps and not why:
                # One step, on this worker's share of the batch.
                batch, draws = ahead.take(self.learner.steps, self.recovery.attempt)
                clock.lap("data")
                self._launch(batch, draws)
                results = self._results()
                clock.lap("compute")

                # They count, or the training goes back; every worker decides alike.
                if results:
                    self.agreement.exchange()
                    if self.guard.failed:
                        self.recovery.go_back()
                    else:
                        self._observe(results, clock)
                    why = self.agreement.end()
                clock.lap("rest")
                if profiled:
                    profiled.step()

        # A last checkpoint, unless the last step has written one.
        if why:
            self.learner.gather()
        if self.observer:
            self.observer.finish(self.recovery.progress(), why)

    def _profiled(self) -> AbstractContextManager[StepProfile | None]:
        """What looks at some steps of the first worker, where that is asked for."""
        wanted = self.recipe.cluster.profile and self.rank == 0
        return closing(StepProfile(self.context.run)) if wanted else nullcontext()

    def _share(self, step: int, attempt: int) -> tuple[Batch, Draws]:
        """This worker's rows of the global batch of a step, and their random numbers: ready to be copied to a GPU."""
        train = self.recipe.train
        tokens = self.learner.network.config.grid**2 if train.route else 0
        batch = to_batch(self.recipe, self.data, self.reader.batch(step))
        shape, width = tuple(batch.latent.shape[1:]), batch.snippet.shape[1]
        draws = draw(train.seed, step, train.batch, shape, width, self.reader.part, attempt, tokens)
        return (batch.pinned(), draws.pinned()) if self.learner.device.type == "cuda" else (batch, draws)

    def _launch(self, batch: Batch, draws: Draws) -> None:
        """A step, and the judgement of it; neither waits for the device."""
        limit = self.guard.limit
        result = self.learner.launch(batch, draws, self.recipe.train.batch, limit)
        self.guard.judge(result["velocity"], result["skipped"])
        self.unread.append(result | {"limit": limit, "bad": self.guard.bad})

    def _results(self) -> list[dict[str, float]]:
        """What the steps since the last look gave; empty where nobody looks after this one, that all go on at once.

        Looks depend on the step alone, so that a resumed training goes back where an undisturbed one does.
        """
        train = self.recipe.train
        if not (self._named() or self._falls_on(train.look_every, train.log_every)):
            return []
        steps, self.unread = self.unread, []
        return told(steps)

    def _observe(self, results: list[dict[str, float]], clock: Clock) -> None:
        if seen := self._to_be_seen():
            self.learner.gather()
        if self.observer is None:
            return
        train, done, last = self.recipe.train, self.learner.steps, results[-1]
        for step, result in enumerate(results, done - len(results)):
            if result["skipped"]:
                loss = f"velocity loss {result['velocity']:.4g} of at most {result['limit']:.4g}"
                text = f"step {step} skipped: {loss}, gradient norm {result['grad_norm']:.4g}"
                self.observer.event("skipped", step, text, say=result["bad"] == 1)
        self.observer.advance(last["total"])
        if self._falls_on(train.log_every) or done == train.steps:
            speed = {"lr": self.learner.lr, "images_per_second": clock.rate() * train.batch}
            self.observer.log(last, speed | clock.shares())
        self.observer.look(self.recovery.progress(), ready=seen and not last["bad"])

    def _to_be_seen(self) -> bool:
        """Whether rank 0 may want the weights after this step: what is sharded is gathered by all."""
        whole = not self.learner.parallel.sharded
        return whole or bool(self.agreement.wishes.checkpoint) or self._named()

    def _named(self) -> bool:
        """Whether the recipe wants something of this step's weights."""
        train, done = self.recipe.train, self.learner.steps
        every = (train.held_out_every, train.sample_every, train.distance_every, train.checkpoint_every)
        return done == train.steps or done in train.checkpoint_at or self._falls_on(*every)

    def _falls_on(self, *every: int) -> bool:
        """Whether this step is one of those that come every so many, 0 being never."""
        return any(steps and self.learner.steps % steps == 0 for steps in every)


def share(total: int, rank: int, world: int) -> slice:
    """The rows of a batch that are this worker's; shares differ by one row where they do not divide it."""
    return slice(total * rank // world, total * (rank + 1) // world)
