"""Ray, embedded or far away: start, join, leave; and the ways jobs spread work over it."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import count, islice
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
# For the processes of an embedded Ray. It has no dashboard, which Ray Train asks whether its controller lives, waiting 12 s
# for an answer at the end of each training: where nobody listens it is told at once. Workers that read pictures wait
# for the next stage, rather than to start, and import, anew.
EMBEDDED = {
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

READER_CPUS = 0.5
"""Reserved by a task that reads a shard for the encoders."""

RESTARTS = 20
"""How often a host may die, by what it works on or with its node. Its task runs again each time, and as often as Ray tries
in the seconds before it takes a silent node for dead."""


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


def warm_up(cluster: Cluster, modules: tuple[str, ...] = ()) -> None:
    """Begins to start Ray in the background; `connected` then waits for it. It ends with the process.

    The hosts of an embedded one import `modules` meanwhile.
    """
    if jobs_address(cluster):
        return

    def start() -> None:
        with suppress(ClusterError):  # `connected` tries again, and says what is wrong where somebody listens
            _join(cluster, modules)
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
        dismiss()
        ray.shutdown()


def _join(cluster: Cluster, modules: tuple[str, ...] = ()) -> bool:
    """Starts or joins Ray unless this process has done so; whether it was this call that did."""
    with _starting:
        if ray.is_initialized():
            return False
        _init(cluster)
        if modules and not address_of(cluster):
            with suppress(Exception):  # only ahead of time: the first pool does what is not done
                for host in _hire(resources(cluster, "latents")):
                    host.prepare.remote(modules)
        return True


def _init(cluster: Cluster) -> None:
    os.environ.update(QUIET)
    address = address_of(cluster)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": WORKER}, **common)
        else:
            # Inherited, and not the job's own: those would keep Ray from starting workers ahead.
            with _environment(WORKER | EMBEDDED):
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


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
    actors = cluster.actors or (max(1, int(gpus / each)) if each else max(1, int(cpus // 2)))
    # On a small machine too, those who read for them must find room, or both would wait for ever.
    reserved_cpus = min(said.cpus or cluster.actor_cpus, max(cpus - READER_CPUS, READER_CPUS) / actors)
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


class Host:
    """An actor that is a worker of one stage after another, so that what they import is imported once."""

    def __init__(self) -> None:
        self._number, self._worker = -1, None

    def prepare(self, modules: tuple[str, ...]) -> None:
        for module in modules:
            import_module(module)

    def call(self, number: int, make: Callable[[], Any], method: str, *args: Any) -> Any:
        """Calls a method of worker `number`, which is made when it is first called, also after a restart."""
        if number != self._number:
            self._worker = None  # before the next is made: its weights may need the room
            self._worker, self._number = make(), number
        return getattr(self._worker, method)(*args)


class Worker:
    """One of a stage's workers, wherever its host is."""

    def __init__(self, host: Any, number: int, kind: type, make: Any) -> None:
        self._host, self._number, self._kind, self._make = host, number, kind, make

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """A reference to the result of a method of the worker's class; what is wrong is raised where that is read."""
        call = self._host.call.options(name=f"{self._kind.__name__}.{method.__name__}")
        return call.remote(self._number, self._make, method.__name__, *args)


@dataclass
class Standing:
    """The hosts of the last stage, which wait for the next: only in an embedded Ray, where nobody else wants their room."""

    reserved: Resources | None = None
    hosts: list[Any] = field(default_factory=list)


_standing = Standing()
_numbers = count()


@contextmanager
def pool(cluster: Cluster, stage: str, kind: type, *args: Any) -> Iterator[list[Worker]]:
    """The workers of a stage: objects of class `kind`, made with their number of threads and `args`.

    Ray restarts a host that dies, up to RESTARTS times, and runs its task again.
    """
    have = resources(cluster, stage)
    hosts, number, make = _hire(have), next(_numbers), ray.put(partial(kind, have.threads, *args))
    try:
        yield [Worker(host, number, kind, make) for host in hosts]
    except BaseException:
        dismiss()
        raise
    if address_of(cluster):
        dismiss()


def _hire(have: Resources) -> list[Any]:
    """Those that wait where they reserve the same, or others in their place."""
    if _standing.reserved != (reserved := replace(have, threads=0)):
        dismiss()
        options = have.options() | {"max_restarts": RESTARTS, "max_task_retries": -1}
        _standing.hosts = [ray.remote(Host).options(**options).remote() for _ in range(have.actors)]
        _standing.reserved = reserved
    return _standing.hosts


def dismiss() -> None:
    """Ends the hosts that wait for the next stage."""
    if ray.is_initialized():
        for host in _standing.hosts:
            ray.kill(host)
    _standing.hosts, _standing.reserved = [], None


def beside(have: Resources) -> Resources:
    """For tasks that run while hosts only wait: they reserve less, so that there are as many at a time."""
    if waiting := _standing.reserved:
        left = ray.cluster_resources().get("CPU", 0) - waiting.actors * waiting.cpus
        have = replace(have, cpus=min(have.cpus, max(left, 0) / have.actors))
    return have


def make_room(have: Resources) -> None:
    """Ends the hosts that wait where a stage of another kind needs what they reserve."""
    if waiting := _standing.reserved:
        there = ray.cluster_resources()
        cpus = have.actors * have.cpus + waiting.actors * waiting.cpus
        gpus = have.actors * have.gpus + waiting.actors * waiting.gpus
        if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
            dismiss()


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


def spread(
    blocks: Iterable[Any], workers: list[Worker], run: Callable[..., Any], *args: Any, depth: int = 2
) -> Iterator[Any]:
    """Hands each block to a worker that is free and yields the results of its method `run` as they end.

    `blocks` lazily starts the remote reads. At most `depth` blocks per worker are under way, so that they never pile
    up; a slow worker only delays its own.
    """
    waiting = iter(blocks)
    free = deque(worker for _ in range(depth) for worker in workers)
    busy: dict[Any, Worker] = {}
    while True:
        for block in islice(waiting, len(free)):
            worker = free.popleft()
            busy[worker.call(run, block, *args)] = worker
        if not busy:
            return
        ready, _ = ray.wait(list(busy), num_returns=1)
        free.append(busy.pop(ready[0]))
        yield ray.get(ready[0])
