"""The workers of a stage: hosts that serve one stage after another, started, made again when they die, stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import count
from typing import Any

import ray

from flows.cluster.address import address_of
from flows.cluster.resources import Resources
from flows.recipe.cluster import Cluster

RESTARTS = 20
"""How often a host may die, by what it works on or with its node. Its task runs again each time, and as often as Ray tries
in the seconds before it takes a silent node for dead."""


def set_threads_and_device(threads: int) -> str:
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
class ActorPool:
    """The hosts of the last stage, which wait for the next: only in an embedded Ray, where nobody else wants their room."""

    reserved: Resources | None = None
    hosts: list[Any] = field(default_factory=list)

    def start(self, wanted: Resources) -> list[Any]:
        """The hosts of a stage: those that wait, where they reserve the same, or others in their place."""
        reserved = replace(wanted, threads=0)
        if self.reserved != reserved:
            self.stop()
            options = wanted.options() | {"max_restarts": RESTARTS, "max_task_retries": -1}
            self.hosts = [ray.remote(Host).options(**options).remote() for _ in range(wanted.actors)]
            self.reserved = reserved
        return self.hosts

    def stop(self) -> None:
        """Ends the hosts that wait for the next stage."""
        if ray.is_initialized():
            for host in self.hosts:
                ray.kill(host)
        self.hosts, self.reserved = [], None


actors = ActorPool()
_numbers = count()


@contextmanager
def pool(cluster: Cluster, reserved: Resources, kind: type, *args: Any) -> Iterator[list[Worker]]:
    """The workers of a stage: objects of class `kind`, made with their number of threads and `args`.

    Ray restarts a host that dies, up to RESTARTS times, and runs its task again.
    """
    hosts = actors.start(reserved)
    number, make = next(_numbers), ray.put(partial(kind, reserved.threads, *args))
    try:
        yield [Worker(host, number, kind, make) for host in hosts]
    except BaseException:
        actors.stop()
        raise
    if address_of(cluster):
        actors.stop()


def reserve_alongside(wanted: Resources) -> Resources:
    """For tasks that run while hosts only wait: they reserve less, so that there are as many at a time."""
    if waiting := actors.reserved:
        left = ray.cluster_resources().get("CPU", 0) - waiting.actors * waiting.cpus
        wanted = replace(wanted, cpus=min(wanted.cpus, max(left, 0) / wanted.actors))
    return wanted


def make_room(wanted: Resources) -> None:
    """Ends the hosts that wait where a stage of another kind needs what they reserve."""
    if waiting := actors.reserved:
        total = ray.cluster_resources()
        cpus = wanted.actors * wanted.cpus + waiting.actors * waiting.cpus
        gpus = wanted.actors * wanted.gpus + waiting.actors * waiting.gpus
        if cpus > total.get("CPU", 0) or gpus > total.get("GPU", 0):
            actors.stop()
