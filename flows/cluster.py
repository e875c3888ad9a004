"""Ray, embedded or far away: start, join, leave; and the ways jobs spread work over it."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import ray

from flows.recipe import Cluster, Reserved

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


def address_of(cluster: Cluster) -> str | None:
    """Of the Ray that is to be used, by the recipe or the environment; None where it is embedded."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or None


def jobs_address(cluster: Cluster) -> str | None:
    """The address of the cluster's jobs API, or None where jobs run in the flow's own process."""
    address = address_of(cluster) or ""
    if address.startswith("ray://"):
        raise ValueError(f"RAY_ADDRESS {address} is for Ray's client; give the cluster's jobs API, http://HOST:8265")
    return address if address.startswith(("http://", "https://")) else None


_starting = threading.Lock()


def warm_up(cluster: Cluster) -> None:
    """Begins to start Ray in the background; `connected` then waits for it. It ends with the process."""
    if jobs_address(cluster):
        return

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
    address = address_of(cluster)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": WORKER}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **common)
        else:
            _embed(cluster, common)
    except Exception as error:  # a node that is slow to start is told as a bare Exception
        where = f"the Ray cluster at {address}" if address else "an embedded Ray"
        raise ClusterError(f"{where} could not be joined ({str(error).splitlines()[0]}); see 'gmem doctor'") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own there, which ends the process without a word.
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _embed(cluster: Cluster, common: dict[str, Any]) -> None:
    """Starts Ray on this machine. Ray gives its node half a minute, which a busy machine may need just to load it: so twice."""
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cluster.cpus,
                include_dashboard=False,
                object_store_memory=int(cluster.object_store_gib * 2**30),
                **common,
            )
        except Exception:
            if last:
                raise
            ray.shutdown()
        else:
            return


@dataclass(frozen=True)
class Resources:
    """What each of the actors, tasks or workers of a stage reserves, and how many there are at a time."""

    actors: int
    cpus: float
    gpus: float
    threads: int
    memory: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """For `.options(…)` of a task or an actor."""
        given = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return given | ({"memory": self.memory} if self.memory else {}) | self.placed()

    def placed(self) -> dict[str, Any]:
        return {"label_selector": self.labels} if self.labels else {}


def resources(cluster: Cluster, stage: str) -> Resources:
    """Of a stage on the Ray this process has joined.

    Encoding and sampling: an actor a GPU, or one for every two CPUs. Ingest: a task a CPU. Training: a worker a GPU,
    or one.
    """
    have, said = ray.cluster_resources(), getattr(cluster, stage)
    gpus, cpus = int(have.get("GPU", 0)), have.get("CPU", 1)
    node_cpus = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))
    if stage == "train":
        found = _training(cluster, gpus, int(cpus))
    elif stage == "ingest":
        each = said.cpus or 1
        found = Resources(max(1, int(cpus / each)), each, said.gpus or 0, max(1, int(each)))
    else:
        found = _encoding(cluster, said, gpus, cpus)
    threads = min(found.threads, node_cpus)
    return replace(found, threads=threads, memory=int(said.memory_gib * 2**30), labels=said.labels)


def _encoding(cluster: Cluster, said: Reserved, gpus: int, cpus: float) -> Resources:
    each = next((g for g in (said.gpus, cluster.actor_gpus) if g is not None), 1.0 if gpus else 0.0)
    reserved_cpus = said.cpus or cluster.actor_cpus
    actors = cluster.actors or (max(1, int(gpus / each)) if each else max(1, int(cpus // 2)))
    threads = max(1, round(reserved_cpus) if each else int(cpus // actors))
    return Resources(actors, reserved_cpus, each, threads)


def _training(cluster: Cluster, gpus: int, cpus: int) -> Resources:
    workers = cluster.train_workers or max(gpus, 1)
    each = cluster.train.gpus if cluster.train.gpus is not None else min(gpus, 1)
    reserved_cpus = cluster.train.cpus or (max(1, cpus // workers - 1) if each else 1)
    # Ray gives a worker as many threads as CPUs it reserved; alone on a machine without GPU it may use them all.
    return Resources(workers, reserved_cpus, each, int(reserved_cpus) if each else max(1, cpus // workers))


def reserved(cluster: Cluster, stage: str, seconds: float) -> dict[str, float]:
    """Hours of CPU and GPU a stage kept from others in so many seconds: what it reserves times its wall time."""
    if not ray.is_initialized():
        return {}
    have = resources(cluster, stage)
    hours = have.actors * seconds / 3600
    return {"reserved/cpu_hours": have.cpus * hours, "reserved/gpu_hours": have.gpus * hours}


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
    options = have.options() | {"max_restarts": -1, "max_task_retries": 3}
    return [ray.remote(actor).options(**options).remote(have.threads, *args) for _ in range(have.actors)]


def under_way(starts: Iterable[Any], limit: int, passing: tuple[type[Exception], ...] = ()) -> Iterator[Any]:
    """Results of remote calls as they end, without those that end in an error of the `passing` kinds.

    `starts` is lazy: at most `limit` calls are under way at a time.
    """
    pending: set[Any] = set()
    remaining = iter(starts)
    pending.update(islice(remaining, limit))
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        pending.difference_update(ready)
        pending.update(islice(remaining, 1))
        try:
            result = ray.get(ready[0])
        except passing:
            continue
        yield result


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
