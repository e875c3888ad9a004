"""What rank 0 does besides training: it tells, logs, measures, shows and saves."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import version as installed
from typing import Any

import ray

from flows.engine.context import Context
from flows.models.resolve import average_of
from flows.stages.train.clock import Clock
from flows.stages.train.preview import Preview
from flows.stages.train.setup import batch_of, open_data
from gmem.batch import draw
from gmem.flow import Losses
from gmem.learner import Learner
from storage.checkpoints import AVERAGES, CheckpointManifest, all_checkpoints, save
from storage.errors import LeaseLost, StoreError
from storage.retention.checkpoints import prune
from storage.tables.training_data import TrainingTable

HELD_OUT_LIMIT, HELD_OUT_BATCH = 1024, 256
RETRY_SECONDS = 60.0
HELD_OUT_PLACE = 2**32
"""Place of the first held-out draw: far beyond any place in a batch, so that the two never share a random number."""
TELL_SECONDS = 0.5
SAVE_ATTEMPTS, SAVE_PAUSE = 5, 10.0
"""How often the last checkpoint is tried, and the seconds between: a store may be away for a moment."""


class Observer:
    """The training as others see it. `stop`: the driver wants a tidy end; `owed`: a checkpoint is due."""

    def __init__(self, context: Context, channel: Any, data: TrainingTable, learner: Learner, clock: Clock) -> None:
        self.context, self.recipe, self.channel, self.data, self.learner = (
            context,
            context.recipe,
            channel,
            data,
            learner,
        )
        self.clock, self.artifact = clock, context.artifact("training")
        self.held_out_data = open_data(context, "held_out")
        self.preview = Preview(self.recipe, data, learner.ema)
        self.held_out: tuple[int, float] | None = None  # the last measurement's step and loss
        self.saved, self.told, self.told_steps = time.monotonic(), 0.0, learner.steps
        self.stop = self.owed = False

    # --- telling -----------------------------------------------------------------------------------------------------

    def tell(self, event: str, value: Any, **values: Any) -> None:
        self.told = time.monotonic()
        self.stop = ray.get(self.channel.tell.remote(event, value, values))

    def begin(self) -> None:
        """How far it is, and where it starts: also after going back."""
        self.told_steps, self.owed = self.learner.steps, False
        self.tell("total", self.recipe.train.steps, done=self.learner.steps)

    def event(self, kind: str, step: int, text: str, say: bool = True) -> None:
        """Something that ought not to happen: a metric `events/<kind>`, a row of the table `events`, and a note."""
        self.context.run.metrics({f"events/{kind}": 1.0}, step=step)
        if say:
            self.context.run.table("events", [{"step": step, "event": kind, "what": text, "time": time.time()}])
            self.tell("note", text)

    def advance(self, loss: float) -> None:
        done = self.learner.steps
        if time.monotonic() - self.told > TELL_SECONDS or done >= self.recipe.train.steps:
            self.tell("advance", done - self.told_steps, loss=loss)
            self.told_steps = done

    def log(self, result: dict[str, float], rest: dict[str, float]) -> None:
        losses = {f"loss/{name}": result[name] for name in Losses._fields}
        told = {name: result[name] for name in ("grad_norm", "skipped")}
        self.context.run.metrics(losses | told | rest, step=self.learner.steps)

    # --- looking and keeping -----------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether it is time for a checkpoint, whatever the step."""
        return self.owed or time.monotonic() - self.saved > 60 * self.recipe.train.checkpoint_minutes

    def look(self, progress: dict[str, Any], ready: bool) -> None:
        """Measures, shows and saves when it is time to; between bad steps, and without the weights of this one (not
        `ready`), saving is put off.

        `progress` is what a resumed training needs besides weights.
        """
        train, done = self.recipe.train, self.learner.steps
        last, named = done == train.steps, done in train.checkpoint_at
        if last or named or not done % train.held_out_every or not done % train.checkpoint_every:
            self.measure()
        if (train.sample_every and done % train.sample_every == 0) or last:
            self.context.run.image("samples", self.preview.grid(), done)
        if train.distance_every and done % train.distance_every == 0:
            self.context.run.metrics({"fd_preview": self.preview.distance()}, step=done)
        self.owed = self.due() or named or done % train.checkpoint_every == 0
        if last or (self.owed and ready):
            self.save(progress, attempts=SAVE_ATTEMPTS if last else 1)

    def measure(self) -> None:
        """The loss of the averaged network on held-out pictures, always with the same draws."""
        ids = self.held_out_data.ids[:HELD_OUT_LIMIT]
        if not len(ids):
            return
        config, sums = self.learner.config, dict[str, float]()
        size = self.learner.micro_batch or HELD_OUT_BATCH
        for start in range(0, len(ids), size):
            batch = batch_of(self.recipe, self.held_out_data, ids[start : start + size])
            rows = slice(HELD_OUT_PLACE + start, HELD_OUT_PLACE + start + len(batch.latent))
            draws = draw(config.seed, 0, rows.stop, tuple(batch.latent.shape[1:]), batch.snippet.shape[1], rows)
            for name, value in self.learner.loss(batch, draws).items():
                sums[name] = sums.get(name, 0.0) + value * len(batch.latent) / len(ids)
        self.held_out = self.learner.steps, sums["velocity"] + config.cosine * sums["cosine"]
        self.context.run.metrics({f"held_out/{name}": value for name, value in sums.items()}, step=self.learner.steps)

    def save(self, progress: dict[str, Any], attempts: int = 1) -> None:
        """A checkpoint. While the store does not take it the training goes on, and the next step tries again.

        Only when all `attempts` of a last checkpoint fail, or the training is another run's by now, is that an error.
        """
        for left in reversed(range(attempts)):
            try:
                self._write(progress)
                return
            except LeaseLost:
                raise
            except StoreError as error:
                self.event("not_saved", self.learner.steps, f"no checkpoint at step {self.learner.steps}: {error}")
                if attempts > 1 and not left:
                    raise
                time.sleep(SAVE_PAUSE if left else 0)
        self.owed, self.saved = False, time.monotonic() - 60 * self.recipe.train.checkpoint_minutes + RETRY_SECONDS

    def finish(self, progress: dict[str, Any], why: str) -> None:
        """The last checkpoint, also of a training that was asked to stop before its last step (`why`)."""
        if self.learner.steps < self.recipe.train.steps:
            self.save(progress, attempts=SAVE_ATTEMPTS)
            self.tell("note", f"{why} at step {self.learner.steps}, with a checkpoint")
            return  # soon: whoever stops a process waits for half a minute, if that
        self.context.store.write_bytes(self.artifact.path("samples.png"), self.preview.grid())

    def _write(self, progress: dict[str, Any]) -> None:
        tensors, learner = self.learner.state()
        save(self.artifact, self.learner.steps, tensors, progress | {"learner": learner}, self._manifest())
        earlier = self.recipe.sample.earlier  # a guide for sampling
        named = {*self.recipe.train.checkpoint_at, *(() if earlier is None else (earlier,))}
        prune(self.artifact, self.recipe.train.keep, named | {self.learner.steps})
        self.owed, self.saved = False, time.monotonic()
        there, model = all_checkpoints(self.artifact), f"gmem-{self.recipe.name}"
        self.context.run.keep(model, there, self.context.store, average_of(there[-1], self.recipe))

    def _manifest(self) -> CheckpointManifest:
        inputs = {kind: self.context.artifact(kind).reference(version) for kind, version in self.data.versions.items()}
        kept = self.context.artifact("memory").folder if "memory" in self.context.fingerprints else None
        start, relative = self.recipe.train.start_from, self.context.store.relative
        step, loss = self.held_out or (-1, None)
        return CheckpointManifest(
            step=self.learner.steps,
            network=asdict(self.learner.network.config),
            **inputs,
            tokenizer=self.data.latents.tokenizer,
            encoder=self.data.encoder,
            latent_mean=self.data.mean.tolist(),
            latent_std=self.data.std.tolist(),
            held_out_loss=loss if step == self.learner.steps else None,  # that of other weights ranks nothing
            training=self.artifact.fingerprint,
            code_version=installed("gmem-pipeline"),
            mlflow_run=self.context.run_id,
            lease=self.context.leases["training"],
            details={
                "start_from": start and relative(start),
                "seconds": self.clock.trained,
                AVERAGES: self.learner.config.averages(),
                "memory": kept,
            },
        )
