"""Stage train: the driver of a Ray Train job. What a worker does is told in flows/training.py."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from flows import cluster
from flows.bank import BANK, PATCHES
from flows.cluster import Channel
from flows.latents import LATENTS
from flows.progress import Report
from flows.recipe import Recipe
from flows.stage import Job, Outcome, Part, Plan, Stage
from flows.training import loop
from storage.checkpoints import Checkpoint, best, latest
from storage.store import Artifact

VERSION = 1
POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
"""How long an interrupted training may take for its last checkpoint."""


def _parameters(plan: Plan) -> dict[str, Any]:
    """The number of steps is no part of a training's identity: more steps continue it."""
    return {
        "network": plan.recipe.network.identity(),
        "train": plan.recipe.train.identity(),
        "mirror": plan.recipe.data.mirror,
    }


def reached(plan: Plan, artifact: Artifact) -> bool:
    newest = latest(artifact)
    return artifact.complete and newest is not None and newest.step >= plan.recipe.train.steps


TRAINING = Part("training", VERSION, _parameters, (LATENTS, BANK, PATCHES), done=reached)


def job(job: Job, report: Report) -> Outcome:
    """Runs the training to its last step, or to a tidy stop with a checkpoint when interrupted."""
    artifact = job.artifact("training")
    channel = Channel.remote()  # type: ignore[attr-defined]
    failure: list[BaseException] = []
    trainer = _trainer(job, channel)
    thread = threading.Thread(target=_fit, args=(trainer, failure), name="train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            _relay(channel, report)
    except BaseException:
        report.note("stopping after a last checkpoint")
        ray.get(channel.ask_to_stop.remote())
        thread.join(GRACE_SECONDS)
        raise
    _relay(channel, report)
    if failure:
        raise _explained(failure[0])
    return _outcome(job, artifact)


def _trainer(job: Job, channel: Any) -> TorchTrainer:
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    workers = job.recipe.cluster.train_workers or max(gpus, 1)
    cpus = max(1, int(have.get("CPU", 1)) // workers - 1) if gpus else 1
    # Ray gives a worker as many threads as CPUs it reserved; alone on a machine without GPU it may use them all.
    threads = cpus if gpus else max(1, int(have.get("CPU", 1)) // workers)
    return TorchTrainer(
        loop,
        train_loop_config={"job": job.model_dump(mode="json"), "channel": channel, "threads": threads},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=bool(gpus), resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpus else {})
        ),
        run_config=RunConfig(
            name=f"{job.recipe.name}-{job.fingerprints['training']}-{os.getpid()}-{time.time_ns()}",
            storage_path=job.artifact("training").path("ray"),
            failure_config=FailureConfig(max_failures=3),
        ),
    )


def _fit(trainer: TorchTrainer, failure: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - handed to the driver's thread, which explains it
        failure.append(error)


def _relay(channel: Any, report: Report) -> None:
    for event, value, values in ray.get(channel.take.remote()):
        getattr(report, event)(value, **values)


def _explained(error: BaseException) -> Exception:
    """The worker's own words."""
    failures = list(getattr(error, "worker_failures", {}).values())
    return cluster.explained(failures[0] if failures else error)


def chosen(recipe: Recipe, artifact: Artifact) -> Checkpoint | None:
    """The checkpoint that evaluation and sampling take: the newest, or the one of the least held-out loss."""
    return best(artifact) if recipe.evaluate.checkpoint == "best" else latest(artifact)


def _outcome(job: Job, artifact: Artifact) -> Outcome:
    newest, least = latest(artifact), best(artifact)
    assert newest is not None and least is not None, "a finished training has written a checkpoint"
    version = job.run.register(f"gmem-{job.recipe.name}", newest)
    return Outcome(
        {"rows": newest.step},
        {"training": newest.step},
        {
            "step": newest.step,
            "best_step": least.step,
            "held_out": least.manifest.held_out_loss,
            "model_version": version,
        },
        pictures={"training-samples": artifact.path("samples.png")},
    )


STAGE = Stage("train", "steps", (TRAINING,), job, continues=True)
