"""Stage train: the driver of a Ray Train job. What a worker does is told in flows/stages/train/worker.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.cluster.address import address_of
from flows.cluster.calls import result
from flows.cluster.errors import ClusterError, explained
from flows.cluster.resources import GRACE_SECONDS
from flows.cluster.workers import make_room
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.models.resolve import average_of
from flows.refusals import REFUSALS
from flows.stages.train.channel import Channel
from flows.stages.train.preemption import Listening
from flows.stages.train.stage import STAGE, sampled_average
from flows.stages.train.worker import loop
from storage.checkpoints import best, latest
from storage.errors import Refused
from storage.store import Artifact

POLL_SECONDS = 0.5
RAY = "ray"  # Ray Train's own folder in the training's, needed only while it runs
GROW_SECONDS = 3600.0
"""How often a training that lost workers may take on more: each time costs the work since the last checkpoint."""
# No node is taken away from a machine of its own: no actor need watch for that; and an end is soon seen.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Runs the training to its last step, or to a tidy stop with a checkpoint when interrupted."""
    artifact = context.artifact("training")
    sampled_average(context.recipe)  # what could not be registered in the end is refused at once
    _require_room(context, progress)
    make_room(STAGE.resources(context.recipe.cluster))
    # With us, for it must outlive the workers' nodes; where it may, Ray puts it elsewhere.
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = Channel.options(scheduling_strategy=node).remote()  # type: ignore[attr-defined]
    with terminable():
        while True:
            before = latest(artifact)
            progress.note(_starting(STAGE.resources(context.recipe.cluster).actors))
            _attempt(_trainer(context, channel), channel, progress)
            newest = latest(artifact)
            if newest and newest.step >= context.recipe.train.steps:
                break
            if newest is None or (before and before.step == newest.step):
                raise ClusterError("the training's workers ended without getting any further; see Ray's logs")
            progress.note(f"a worker was asked to make way; going on from step {newest.step} with other workers")
    context.store.files.remove(artifact.path(RAY))
    return {"training": _made(context, artifact)}


def _require_room(context: Context, progress: Progress) -> None:
    """Ray waits without a word for what a cluster does not have, and an embedded one will never have more."""
    reserved, fewest, there = STAGE.resources(context.recipe.cluster), _fewest(context), ray.cluster_resources()
    for kind, each in (("CPU", reserved.cpus), ("GPU", reserved.gpus)):
        if fewest * each > there.get(kind, 0):
            text = f"{fewest} training workers need {fewest * each:g} {kind}s, Ray has {there.get(kind, 0):g}"
            if not address_of(context.recipe.cluster):
                raise StageError(f"{text}; lower cluster.train_workers or raise cluster.cpus")
            progress.note(f"{text}: waiting for more nodes, or lower cluster.train_workers")


def _starting(workers: int) -> str:
    """What is told while nothing can be seen yet: Ray Train starts its workers, and they import and read."""
    many = f"{workers} training workers" if workers > 1 else "the training worker"
    return f"starting {many}, which takes some twenty seconds or more"


def _fewest(context: Context) -> int:
    workers = STAGE.resources(context.recipe.cluster).actors
    return min(context.recipe.cluster.train_workers_min or workers, workers)


def _attempt(trainer: TorchTrainer, channel: Any, progress: Progress) -> None:
    """One Ray Train run, which itself replaces workers that die. What goes wrong in it is raised here."""
    failure: list[BaseException] = []
    # An event to wait for, and not the thread: a join that a signal interrupts takes the thread for ended (Python 3.11).
    ended = threading.Event()
    threading.Thread(target=_fit, args=(trainer, failure, ended), name="train", daemon=True).start()
    try:
        while not ended.wait(POLL_SECONDS):
            _relay(channel, progress)
    except REFUSALS:  # no use in trying again
        raise
    except BaseException:
        progress.note("stopping after a last checkpoint")
        result(channel.ask_to_stop.remote())
        _await_rest(ended, channel)
        _relay(channel, progress)
        raise
    _relay(channel, progress)
    if failure:
        raise _explained(failure[0])


def _await_rest(ended: threading.Event, channel: Any) -> None:
    """Until the last checkpoint is there: who stops a process may not wait until Ray has ended the workers as well."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and not ended.wait(POLL_SECONDS):
        if result(channel.at_rest.remote()):
            return


def _trainer(context: Context, channel: Any) -> TorchTrainer:
    reserved, fewest = STAGE.resources(context.recipe.cluster), _fewest(context)
    if not address_of(context.recipe.cluster):
        os.environ.update(ALONE)
    config = {"context": context.model_dump(mode="json"), "channel": channel, "threads": reserved.threads}
    return TorchTrainer(
        loop,
        train_loop_config=config,
        torch_config=Listening(),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=reserved.actors if fewest == reserved.actors else (fewest, reserved.actors),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=GROW_SECONDS,
            use_gpu=bool(reserved.gpus),
            resources_per_worker={"CPU": reserved.cpus, "GPU": reserved.gpus, "memory": reserved.memory},
            **reserved.placed(),
        ),
        run_config=RunConfig(
            name=f"{context.recipe.name}-{context.fingerprints['training']}-{os.getpid()}-{time.time_ns()}",
            storage_path=context.artifact("training").path(RAY),
            failure_config=FailureConfig(max_failures=context.recipe.cluster.train_failures),
        ),
    )


def _fit(trainer: TorchTrainer, failure: list[BaseException], ended: threading.Event) -> None:
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - handed to the driver's thread, which explains it
        failure.append(error)
    finally:
        ended.set()


def _relay(channel: Any, progress: Progress) -> None:
    """Raises Refused when the workers said that nothing but another recipe or store would help."""
    events, reason = result(channel.take.remote())
    for event, value, values in events:
        getattr(progress, event)(value, **values)
    if reason:
        raise Refused(reason)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends this process as an interrupt would, so that a last checkpoint is written, where nobody else (such
    as Prefect) listens to it."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _explained(error: BaseException) -> Exception:
    """The worker's own words."""
    failures = list(getattr(error, "worker_failures", {}).values())
    return explained(failures[0] if failures else error)


def _made(context: Context, artifact: Artifact) -> Made:
    last, least = latest(artifact), best(artifact)
    assert last is not None and least is not None, "a finished training has written a checkpoint"
    from flows.models.served import save  # MLflow's models cost a second or two, which nobody else need wait for

    model_version = context.run.register(
        f"gmem-{context.recipe.name}",
        last,
        context.store,
        lambda network, target: save(network, target, context.recipe),
        average=average_of(last, context.recipe),
    )
    start = context.recipe.train.start_from
    return Made(
        {"rows": last.step},
        last.step,
        {
            "step": last.step,
            "best_step": least.step,
            "best_held_out": least.manifest.held_out_loss,
            "held_out": last.manifest.held_out_loss,
            "model_version": model_version,
            # by its address, which keeps it from being cleaned up
            "start_from": start and context.store.relative(start),
        },
        figures={"training-samples": "samples.png"},
    )
