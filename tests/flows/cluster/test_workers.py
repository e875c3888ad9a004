"""The workers of stages: hosts that serve one stage after another, die, and make room."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import ray

from flows.cluster.errors import explained
from flows.cluster.resources import Resources, one_actor_per_device, resources
from flows.cluster.workers import make_room, pool
from flows.recipe.cluster import Cluster
from storage.errors import Refused

EMBEDDED = Cluster(cpus=3)


def reserved() -> Resources:
    return resources(EMBEDDED, "latents", one_actor_per_device)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Adder:
    """Adds to a number it was made with."""

    def __init__(self, threads: int, first: int) -> None:
        self.threads, self.first = threads, first

    def plus(self, second: int) -> tuple[int, int]:
        return self.first + second, os.getpid()

    def refuse(self) -> None:
        raise Refused("the file is no picture")

    def die_once(self, traces: str) -> int:
        if not Path(traces).exists():
            Path(traces).touch()
            os._exit(1)
        return self.first


class Other(Adder):
    """Another stage's."""


def test_the_next_stage_finds_the_same_processes(a_ray: None) -> None:
    with pool(EMBEDDED, reserved(), Adder, 3) as workers:
        made, process = ray.get(workers[0].call(Adder.plus, 4))
    with pool(EMBEDDED, reserved(), Other, 5) as others:
        assert ray.get(others[0].call(Other.plus, 1)) == (6, process) and made == 7
    make_room(Resources(actors=3, cpus=1, gpus=0, threads=1))
    with pool(EMBEDDED, reserved(), Adder, 0) as workers:
        assert ray.get(workers[0].call(Adder.plus, 1))[1] != process


def test_what_is_wrong_is_told_in_its_own_words(a_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised, pool(EMBEDDED, reserved(), Adder, 3) as workers:
        ray.get(workers[0].call(Adder.refuse))
    assert str(explained(raised.value)) == "the file is no picture"


def test_one_that_dies_is_made_again_and_its_task_done(a_ray: None, tmp_path: Path) -> None:
    with pool(EMBEDDED, reserved(), Adder, 8) as workers:
        assert ray.get(workers[0].call(Adder.die_once, str(tmp_path / "died"))) == 8
