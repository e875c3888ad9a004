"""What one training worker does, from the newest checkpoint to the last step."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flows.cluster import settle
from flows.preview import Preview
from flows.recipe import Recipe
from flows.stage import Job
from gmem.learner import Batch, Draws, Learner, LearnerConfig, draw
from gmem.network import Network, NetworkConfig
from gmem.tokenizer import standardise
from storage.checkpoints import Checkpoint, CheckpointManifest, load, load_latest, open_checkpoint, prune, save
from storage.training_data import BatchOrder, TrainingTable

HELD_OUT_LIMIT = 1024
HELD_OUT_PLACE = 2**32
"""Place of the first held-out draw: far beyond any place in a batch, so that the two never share a random number."""
TELL_SECONDS = 0.5
STOP_EVERY = 10
SKIPS_ALLOWED = 5


def loop(config: dict[str, Any]) -> None:
    """The function Ray Train runs on every worker."""
    device = settle(config["threads"])
    context = ray.train.get_context()
    worker = Worker(Job(**config["job"]), config["channel"], context.get_world_rank(), context.get_world_size(), device)
    try:
        worker.run()
    finally:
        worker.job.run.close()


def network_config(recipe: Recipe, data: TrainingTable) -> NetworkConfig:
    network = recipe.network
    return NetworkConfig.of(
        network.size,
        patch=network.patch,
        latent_channels=recipe.tokenizer.channels,
        latent_size=recipe.grid,
        snippet_dim=data.snippet_dim,
        projection_dim=data.token_dim,
        projection_hidden=network.projection_hidden,
        conditioning=network.conditioning,
        snippet_scale=network.snippet_scale,
        classes=data.classes if network.conditioning == "label" else 0,
        prediction=network.prediction,
        initialisation=network.initialisation,
    )


def learner_config(recipe: Recipe) -> LearnerConfig:
    train = recipe.train
    return LearnerConfig(
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
        clip=train.clip,
        warmup_steps=train.warmup,
        ema_decay=train.ema,
        precision=train.precision,
        mask_rate=train.mask,
        drop_rate=train.drop,
        cosine_weight=train.cosine,
        projection_weight=train.align,
        time_sampling=train.times,
        time_shift_base=train.shift_base or 0,
        seed=train.seed,
    )


class Worker:
    """One of `world` equal workers. Rank 0 also tells, logs, measures and saves."""

    def __init__(self, job: Job, channel: Any, rank: int, world: int, device: str) -> None:
        self.job, self.recipe, self.channel, self.rank, self.world = job, job.recipe, channel, rank, world
        self.device, self.artifact = device, job.artifact("training")
        self.data = self._data("train")
        self.held_out_data = self._data("held_out")
        self.mean, self.std = self.data.mean, self.data.std
        self.held_out: float | None = None
        self.learner = self._learner()
        self.order = BatchOrder(
            self.recipe.train.seed, self.data.pictures, self.recipe.train.batch, self.recipe.data.mirror
        )
        self.preview = Preview(self.recipe, self.data, self.learner.ema) if rank == 0 else None
        self.saved = time.monotonic()
        self.told = 0.0
        self.stopping = False

    # --- what it starts from -----------------------------------------------------------------------------------------

    def _data(self, split: str) -> TrainingTable:
        patches = self.job.artifact("patches").uri if self.recipe.train.align else None
        return TrainingTable(
            self.job.artifact("latents").uri,
            self.job.artifact("bank").uri,
            patches,
            split,
            memory_limit=int(self.recipe.train.memory_gib * 2**30),
            storage_options=self.job.store.storage_options,
        )

    def _learner(self) -> Learner:
        torch.manual_seed(self.recipe.train.seed)
        network = Network(network_config(self.recipe, self.data))
        if self.recipe.train.start_from:
            _load_into(network, open_checkpoint(self.recipe.train.start_from))
        learner = Learner(
            network, learner_config(self.recipe), self.device, _distributed if self.world > 1 else None, self.world
        )
        if resumed := load_latest(self.artifact):
            learner.load_state(resumed[1], resumed[2]["learner"])
            self.held_out = resumed[0].manifest.held_out_loss
        return learner

    # --- the story ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        steps, train = self.recipe.train.steps, self.recipe.train
        self._tell("total", steps, done=self.learner.steps)
        clock, skipped, since = Clock(), 0, self.learner.steps
        while self.learner.steps < steps and not self._asked_to_stop():
            step = self.learner.steps
            batch, draws = self._share(step)
            clock.lap("data")
            result = self.learner.step(batch, draws, train.batch)
            clock.lap("compute")

            skipped = skipped + 1 if result["skipped"] else 0
            if skipped > SKIPS_ALLOWED:
                raise RuntimeError(
                    f"{skipped} steps in a row had gradients that are not finite, the last at step {step}; going back to the last checkpoint"
                )
            done = step + 1
            if self.rank == 0 and (time.monotonic() - self.told > TELL_SECONDS or done == steps):
                self._tell("advance", done - since, loss=result["total"] * self.world)
                since = done
            if done % train.log_every == 0 or done == steps:
                self._log(done, result, clock)
            if self.rank == 0:
                self._look(done)
            clock.lap("rest")
        if self.rank == 0:
            self._finish()

    def _share(self, step: int) -> tuple[Batch, Draws]:
        """This worker's rows of the global batch of a step, and their random numbers."""
        total = self.recipe.train.batch
        rows = slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)
        batch = self._batch(self.data, self.order.ids(step)[rows])
        return batch, draw(
            self.learner.config, step, total, tuple(batch.latent.shape[1:]), batch.snippet.shape[1], rows
        )

    def _batch(self, data: TrainingTable, ids: Tensor | NDArray[np.int64]) -> Batch:
        rows = data.batch(ids)
        label = rows["label"] if self.recipe.network.conditioning == "label" else None
        tokens = data.patches.full(rows["tokens"]) if data.patches else None
        return Batch(standardise(rows["latent"].float(), self.mean, self.std), rows["snippet"].float(), tokens, label)

    def _asked_to_stop(self) -> bool:
        """Whether the driver wants a tidy end; all workers stop at the same step."""
        if self.world == 1 or self.learner.steps % STOP_EVERY:
            return self.stopping and self.world == 1
        flag = torch.tensor(float(self.stopping), device=self.learner.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    # --- what rank 0 does besides ------------------------------------------------------------------------------------

    def _tell(self, event: str, value: Any, **values: Any) -> None:
        if self.rank == 0:
            self.told = time.monotonic()
            self.stopping = ray.get(self.channel.tell.remote(event, value, values))

    def _log(self, done: int, result: dict[str, float], clock: Clock) -> None:
        """Losses are shares of the global mean, so their sum over workers is the mean."""
        parts = [name for name in result if name not in ("grad_norm", "lr", "skipped")]
        values = torch.tensor([result[name] for name in parts], device=self.learner.device)
        if self.world > 1:
            dist.all_reduce(values)
        if self.rank == 0:
            rate = {"images_per_second": clock.rate() * self.recipe.train.batch}
            losses = {f"loss/{name}": value for name, value in zip(parts, values.tolist(), strict=True)}
            rest = {name: result[name] for name in ("grad_norm", "lr", "skipped")}
            self.job.run.metrics(losses | rest | rate | clock.shares(), step=done)

    def _look(self, done: int) -> None:
        """Measures, shows and saves when it is time to."""
        train, last = self.recipe.train, done == self.recipe.train.steps
        if done % train.held_out_every == 0 or last:
            self._measure(done)
        assert self.preview is not None
        if (train.sample_every and done % train.sample_every == 0) or last:
            self.job.run.artifact(f"samples/step-{done:08d}.png", self.preview.grid())
        if train.distance_every and done % train.distance_every == 0:
            self.job.run.metrics({"fd_preview": self.preview.distance()}, step=done)
        due = time.monotonic() - self.saved > 60 * train.checkpoint_minutes
        if done % train.checkpoint_every == 0 or due or last:
            self._save()

    def _measure(self, done: int) -> None:
        """The loss of the averaged network on held-out pictures, always with the same draws."""
        ids, batch_size = self.held_out_data.ids[:HELD_OUT_LIMIT], self.recipe.train.batch
        if not len(ids):
            return
        config, sums = self.learner.config, dict[str, float]()
        for start in range(0, len(ids), batch_size):
            batch = self._batch(self.held_out_data, ids[start : start + batch_size])
            rows = slice(HELD_OUT_PLACE + start, HELD_OUT_PLACE + start + len(batch.latent))
            draws = draw(config, 0, rows.stop, tuple(batch.latent.shape[1:]), batch.snippet.shape[1], rows)
            for name, value in self.learner.loss(batch, draws).items():
                sums[name] = sums.get(name, 0.0) + value * len(batch.latent) / len(ids)
        self.held_out = sums["velocity"] + config.cosine_weight * sums["cosine"]
        self.job.run.metrics({f"held_out/{name}": value for name, value in sums.items()}, step=done)

    def _save(self) -> None:
        tensors, progress = self.learner.state()
        save(self.artifact, self.learner.steps, tensors, {"learner": progress}, self._manifest())
        prune(self.artifact, self.recipe.train.keep)
        self.saved = time.monotonic()

    def _manifest(self) -> CheckpointManifest:
        inputs = {
            kind: self.job.artifact(kind).reference(self.job.manifest(kind).details.get("version"))
            for kind in ("latents", "bank")
        }
        if self.recipe.train.align:
            inputs["patches"] = self.job.artifact("patches").reference(
                self.job.manifest("patches").details.get("version")
            )
        return CheckpointManifest(
            step=self.learner.steps,
            network=asdict(self.learner.network.config),
            **inputs,
            tokenizer=self.data.latents.tokenizer,
            encoder=self.data.encoder,
            latent_mean=self.mean.tolist(),
            latent_std=self.std.tolist(),
            held_out_loss=self.held_out,
            training=self.artifact.fingerprint,
            code_version=installed("gmem-pipeline"),
            mlflow_run=self.job.run_id,
            lease=self.job.leases["training"],
        )

    def _finish(self) -> None:
        """The last checkpoint, also of a training that was asked to stop."""
        if self.stopping and self.learner.steps < self.recipe.train.steps:
            self._save()
            self._tell("note", f"stopped at step {self.learner.steps} with a checkpoint")
        assert self.preview is not None
        self.job.store.write_bytes(self.artifact.path("samples.png"), self.preview.grid())


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


def _distributed(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


def _load_into(network: Network, checkpoint: Checkpoint) -> None:
    """Puts the averaged weights of a checkpoint or an imported network into `network`; ValueError where they do not fit."""
    tensors, _ = load(checkpoint, ["ema"])
    given = {name.removeprefix("ema."): value for name, value in tensors.items()}
    wanted = network.state_dict()
    wrong = [
        n
        for n in sorted(given.keys() | wanted.keys())
        if n not in given or n not in wanted or given[n].shape != wanted[n].shape
    ]
    if wrong:
        raise ValueError(
            f"train.start_from {checkpoint.uri} is another network: {len(wrong)} tensors are missing, surplus or of another "
            f"shape, first {', '.join(wrong[:3])}; name one of the recipe's size, latents and snippets"
        )
    network.load_state_dict(given)
