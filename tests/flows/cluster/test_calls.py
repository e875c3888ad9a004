"""Work is spread evenly, whoever is slow."""

from __future__ import annotations

import os
import sys
import time

import pytest
import ray

from flows.cluster.calls import spread
from flows.cluster.resources import one_actor_per_device, resources
from flows.cluster.workers import pool
from flows.recipe.cluster import Cluster

EMBEDDED = Cluster(cpus=3)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Sleeper:
    """Encodes as a GPU does: the machine's own cores only wait."""

    def __init__(self, threads: int) -> None:
        pass

    def who(self) -> int:
        return os.getpid()

    def run(self, block: int, slow: int | None = None) -> int:
        time.sleep(2.0 if slow == os.getpid() else 0.2)
        return os.getpid()


def seconds(workers: int, blocks: int) -> float:
    """To have so many blocks encoded, once the workers are there."""
    cluster = EMBEDDED.model_copy(update={"actors": workers})
    with pool(cluster, resources(cluster, "latents", one_actor_per_device), Sleeper) as found:
        ray.get([worker.call(Sleeper.who) for worker in found])
        start = time.monotonic()
        assert len(list(spread(map(ray.put, range(blocks)), found, Sleeper.run))) == blocks
        return time.monotonic() - start


@pytest.mark.benchmark
def test_two_workers_are_nearly_twice_as_fast_as_one(a_ray: None) -> None:
    assert seconds(1, 20) / seconds(2, 20) >= 1.7


def test_a_slow_worker_does_not_hold_up_the_others(a_ray: None) -> None:
    cluster = EMBEDDED.model_copy(update={"actors": 2})
    with pool(cluster, resources(cluster, "latents", one_actor_per_device), Sleeper) as workers:
        slow, _ = ray.get([worker.call(Sleeper.who) for worker in workers])
        done = list(spread(map(ray.put, range(20)), workers, Sleeper.run, slow))
    assert len(done) == 20 and done.count(slow) <= 3  # two of them were handed to it at once
