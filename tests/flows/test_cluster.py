"""The workers of stages: hosts that serve one stage after another, die, and make room."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import ray

from flows import cluster
from flows.recipe import Cluster, Reserved

EMBEDDED = Cluster(cpus=3)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Adder:
    """Adds to a number it was made with."""

    def __init__(self, threads: int, first: int) -> None:
        self.threads, self.first = threads, first

    def plus(self, second: int) -> tuple[int, int]:
        return self.first + second, os.getpid()

    def refuse(self) -> None:
        raise ValueError("the file is no picture")

    def die_once(self, traces: str) -> int:
        if not Path(traces).exists():
            Path(traces).touch()
            os._exit(1)
        return self.first


class Other(Adder):
    """Another stage's."""


def test_the_next_stage_finds_the_same_processes(a_ray: None) -> None:
    with cluster.pool(EMBEDDED, "latents", Adder, 3) as workers:
        made, process = ray.get(workers[0].call(Adder.plus, 4))
    with cluster.pool(EMBEDDED, "bank", Other, 5) as others:
        assert ray.get(others[0].call(Other.plus, 1)) == (6, process) and made == 7
    cluster.make_room(cluster.Resources(actors=3, cpus=1, gpus=0, threads=1))
    with cluster.pool(EMBEDDED, "evaluate", Adder, 0) as workers:
        assert ray.get(workers[0].call(Adder.plus, 1))[1] != process


def test_what_is_wrong_is_told_in_its_own_words(a_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised, cluster.pool(EMBEDDED, "latents", Adder, 3) as workers:
        ray.get(workers[0].call(Adder.refuse))
    assert str(cluster.explained(raised.value)) == "the file is no picture"


def test_one_that_dies_is_made_again_and_its_task_done(a_ray: None, tmp_path: Path) -> None:
    with cluster.pool(EMBEDDED, "latents", Adder, 8) as workers:
        assert ray.get(workers[0].call(Adder.die_once, str(tmp_path / "died"))) == 8


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
    with cluster.pool(EMBEDDED.model_copy(update={"actors": workers}), "latents", Sleeper) as found:
        ray.get([worker.call(Sleeper.who) for worker in found])
        start = time.monotonic()
        assert len(list(cluster.spread(map(ray.put, range(blocks)), found, Sleeper.run))) == blocks
        return time.monotonic() - start


def test_two_workers_are_nearly_twice_as_fast_as_one(a_ray: None) -> None:
    assert seconds(1, 20) / seconds(2, 20) >= 1.7


def test_a_slow_worker_does_not_hold_up_the_others(a_ray: None) -> None:
    with cluster.pool(EMBEDDED.model_copy(update={"actors": 2}), "latents", Sleeper) as workers:
        slow, _ = ray.get([worker.call(Sleeper.who) for worker in workers])
        done = list(cluster.spread(map(ray.put, range(20)), workers, Sleeper.run, slow))
    assert len(done) == 20 and done.count(slow) <= 3  # two of them were handed to it at once


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
def test_readers_find_room_beside_encoders(cpus: int) -> None:
    for said in (Reserved(), Reserved(cpus=4)):
        have = cluster._encoding(Cluster(), said, 0, cpus)
        assert have.actors >= 1 and 0 < have.actors * have.cpus <= cpus - cluster.READER_CPUS
