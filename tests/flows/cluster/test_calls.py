"""Work is spread evenly, whoever is slow; who waits for it hears signals, whatever becomes of Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import ray

from flows.cluster.calls import result, spread, under_way
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


WAITING = """
import os, time
import psutil, ray
from flows.cluster.calls import {name}
from flows.cluster.connection import connected, interruptible
from flows.recipe.cluster import Cluster

with connected(Cluster(cpus=1, object_store_gib=0.1)), interruptible():
    sleeping = ray.remote(lambda: time.sleep(100)).remote()
    there = ray.remote(lambda: bytes(1_000_000)).remote()
    ray.wait([there], fetch_local=False)
    for process in psutil.Process().children(recursive=True):
        if process.name() in ("raylet", "gcs_server"):
            process.suspend()
    try:
        print("waiting", flush=True)
        {wait}
    except KeyboardInterrupt:
        os._exit(7)
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "wait"), [("result", "result(there)"), ("under_way", "list(under_way([sleeping], 1))")]
)
def test_a_signal_is_heard_while_ray_does_not_answer(name: str, wait: str) -> None:
    words = [sys.executable, "-c", WAITING.format(name=name, wait=wait)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 7
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@ray.remote(max_retries=0)
def refuse(number: int) -> int:
    if number == 1:
        raise ValueError("not this one")
    if number == 2:
        os._exit(1)
    return number


def test_what_is_wrong_is_raised_where_the_result_is_read(a_ray: None) -> None:
    with pytest.raises(ValueError, match="not this one"):
        result(refuse.remote(1))
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        list(under_way(map(refuse.remote, [2, 3]), 1))


def test_what_may_go_wrong_is_passed_over(a_ray: None) -> None:
    passing = (ValueError, ray.exceptions.WorkerCrashedError)
    assert sorted(under_way(map(refuse.remote, range(5)), 2, passing)) == [0, 3, 4]
