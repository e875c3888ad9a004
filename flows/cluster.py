"""Ray, embedded or far away: start, join, leave; and the ways jobs spread work over it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from flows.recipe import Cluster

# Set before Ray's processes start: nothing is sent to the outside, our own virtual environment is used, and workers are
# no nicer than other programs, beside which they would otherwise stand still.
QUIET = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Lance and fork do not mix; tokenizers and BLAS take the threads Ray reserved.
WORKER = {"PYTHONWARNINGS": "ignore", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


class ClusterError(RuntimeError):
    """A cluster that cannot be reached or a job that failed there, in one sentence."""


def explained(error: BaseException) -> Exception:
    """What went wrong in a worker, in its own words: a ValueError stays one, whatever Ray wrapped it in."""
    cause = error
    while isinstance(inner := getattr(cause, "cause", None) or cause.__cause__, BaseException):
        cause = inner
    if isinstance(cause, ValueError):
        return ValueError(str(cause))
    lines = str(cause).strip().splitlines() or [""]
    return ClusterError(f"a job failed: {type(cause).__name__}: {lines[-1]}")


_starting = threading.Lock()


def warm_up(cluster: Cluster) -> None:
    """Begins to start Ray in the background; `connected` then waits for it. It ends with the process."""

    def start() -> None:
        with suppress(ClusterError):  # `connected` tries again, and says what is wrong where somebody listens
            _join(cluster)
        # Ray's processes ask the kernel to end them with the thread, not the process, that started them: so it stays.
        threading.Event().wait()

    threading.Thread(target=start, name="ray-start", daemon=True).start()


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray for as long as the context lasts; joins what is already running, or being started, in this process."""
    if not _join(cluster):
        yield
        return
    try:
        yield
    finally:
        ray.shutdown()


def _join(cluster: Cluster) -> bool:
    """Starts or joins Ray unless this process has done so; whether it was this call that did."""
    with _starting:
        if ray.is_initialized():
            return False
        _init(cluster)
        return True


def _init(cluster: Cluster) -> None:
    os.environ.update(QUIET)
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": WORKER}}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=cluster.cpus,
                include_dashboard=False,
                object_store_memory=int(cluster.object_store_gib * 2**30),
                **common,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "an embedded Ray"
        raise ClusterError(f"{where} could not be joined ({str(error).splitlines()[0]}); see 'gmem doctor'") from error


@dataclass(frozen=True)
class Resources:
    """What one actor of a stage reserves, and how many there are."""

    actors: int
    cpus: float
    gpus: float
    threads: int


def resources(cluster: Cluster) -> Resources:
    """Actors for encoding and sampling: one a GPU, or one for every two CPUs of the cluster."""
    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), have.get("CPU", 1)
    each_gpu = cluster.actor_gpus if cluster.actor_gpus is not None else (1.0 if gpus else 0.0)
    actors = cluster.actors or (max(1, int(gpus / each_gpu)) if each_gpu else max(1, int(cpus // 2)))
    node_cpus = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    threads = max(1, round(cluster.actor_cpus) if each_gpu else int(node_cpus * len(ray.nodes()) // actors))
    return Resources(actors, cluster.actor_cpus, each_gpu, min(threads, int(node_cpus)))


def settle(threads: int) -> str:
    """The device of this worker: the GPU Ray gave it, or the CPU with so many threads.

    Ray gives a worker as many threads as CPUs it reserved, which would leave half of a small machine idle.
    """
    import torch

    torch.set_num_threads(threads)
    return "cuda" if ray.get_gpu_ids() else "cpu"


def pool(actor: Any, have: Resources, *args: Any) -> list[Any]:
    """Starts the actors of a stage, whose first argument is their number of threads.

    Ray restarts one that dies and runs its task again.
    """
    options = {"num_cpus": have.cpus, "num_gpus": have.gpus, "max_restarts": -1, "max_task_retries": 3}
    return [ray.remote(actor).options(**options).remote(have.threads, *args) for _ in range(have.actors)]


def under_way(starts: Iterable[Any], limit: int) -> Iterator[Any]:
    """Results of remote calls as they end. `starts` is lazy: at most `limit` calls are under way at a time."""
    pending: set[Any] = set()
    remaining = iter(starts)
    pending.update(islice(remaining, limit))
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        pending.difference_update(ready)
        pending.update(islice(remaining, 1))
        yield ray.get(ready[0])


def spread(blocks: Iterable[Any], actors: list[Any], depth: int = 2) -> Iterator[Any]:
    """Hands each block to the actor that is free and yields results as they end.

    `blocks` lazily starts the remote reads; `actors` have a method `run(block)`. At most `depth` blocks per actor are
    under way, so that they never pile up; a slow actor only delays its own.
    """
    waiting = iter(blocks)
    free = deque(actor for _ in range(depth) for actor in actors)
    busy: dict[Any, Any] = {}
    while True:
        for block in islice(waiting, len(free)):
            actor = free.popleft()
            busy[actor.run.remote(block)] = actor
        if not busy:
            return
        ready, _ = ray.wait(list(busy), num_returns=1)
        free.append(busy.pop(ready[0]))
        yield ray.get(ready[0])


@ray.remote(num_cpus=0)
class Channel:
    """Carries events from a training's workers to its driver, and a request to stop the other way."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, dict[str, Any]]] = []
        self.stop = False

    def tell(self, event: str, value: Any, values: dict[str, Any] | None = None) -> bool:
        """Adds an event; answers whether the training should stop."""
        self.events.append((event, value, values or {}))
        return self.stop

    def take(self) -> list[tuple[str, Any, dict[str, Any]]]:
        events, self.events = self.events, []
        return events

    def ask_to_stop(self) -> None:
        self.stop = True
