"""What the actors, tasks and workers of a stage reserve of a cluster, and how many there are at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import ray

from flows.recipe.model import Cluster, Reserved

READER_CPUS = 0.5
"""Reserved by a task that reads a shard for the encoders."""


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
