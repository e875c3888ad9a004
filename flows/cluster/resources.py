"""What the actors, tasks and workers of a stage reserve of a cluster, and how many there are at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from flows.recipe.cluster import Cluster, Reserved

READER_CPUS = 0.5
"""Reserved by a task that reads a shard for the encoders."""
GRACE_SECONDS = 120.0
"""How long work that is interrupted may take for what it commits last, such as a checkpoint."""


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


Rule = Callable[[Cluster, Reserved, "Available"], Resources]
"""How a stage shares a Ray out, before its threads are bounded by a node's CPUs."""


@dataclass(frozen=True)
class Available:
    """What the Ray that this process has joined has in all."""

    cpus: float
    gpus: int

    def shared(self, share: float) -> Available:
        """What is one run's of it: of GPUs at least one, where there are any."""
        return Available(self.cpus * share, min(self.gpus, max(1, int(self.gpus * share))))


def resources(cluster: Cluster, stage: str, rule: Rule) -> Resources:
    """Of a stage on the Ray this process has joined."""
    import ray

    total, settings = ray.cluster_resources(), getattr(cluster, stage)
    node_cpus = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))
    there = Available(total.get("CPU", 1), int(total.get("GPU", 0))).shared(cluster.share)
    found = rule(cluster, settings, there)
    return replace(
        found,
        threads=min(found.threads, node_cpus),
        memory=int(settings.memory_gib * 2**30),
        labels=settings.labels,
    )


def one_task_per_cpu(_cluster: Cluster, settings: Reserved, available: Available) -> Resources:
    """For work that decodes and writes."""
    each = settings.cpus or 1
    return Resources(max(1, int(available.cpus / each)), each, settings.gpus or 0, max(1, int(each)))


def one_actor_per_device(cluster: Cluster, settings: Reserved, available: Available) -> Resources:
    """For encoding and sampling: an actor a GPU, or one for every two CPUs."""
    cpus, gpus = available.cpus, available.gpus
    each = next((g for g in (settings.gpus, cluster.actor_gpus) if g is not None), 1.0 if gpus else 0.0)
    actors = cluster.actors or (max(1, int(gpus / each)) if each else max(1, int(cpus // 2)))
    # On a small machine too, those who read for them must find room, or both would wait for ever.
    reserved_cpus = min(settings.cpus or cluster.actor_cpus, max(cpus - READER_CPUS, READER_CPUS) / actors)
    threads = max(1, round(reserved_cpus) if each else int(cpus // actors))
    return Resources(actors, reserved_cpus, each, threads)


def one_worker_per_gpu(cluster: Cluster, settings: Reserved, available: Available) -> Resources:
    """For training: a worker a GPU, or one."""
    cpus, gpus = int(available.cpus), available.gpus
    workers = cluster.train_workers or max(gpus, 1)
    each = settings.gpus if settings.gpus is not None else min(gpus, 1)
    reserved_cpus = settings.cpus or (max(1, cpus // workers - 1) if each else 1)
    # Ray gives a worker as many threads as CPUs it reserved; alone on a machine without GPU it may use them all.
    return Resources(workers, reserved_cpus, each, int(reserved_cpus) if each else max(1, cpus // workers))


def reserved_hours(reserved: Resources, seconds: float) -> dict[str, float]:
    """Hours of CPU and GPU a stage kept from others in so many seconds: what it reserves times its wall time."""
    hours = reserved.actors * seconds / 3600
    return {"reserved/cpu_hours": reserved.cpus * hours, "reserved/gpu_hours": reserved.gpus * hours}
