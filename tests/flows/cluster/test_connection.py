"""Addresses at which no Ray listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from flows.cluster import connection
from flows.cluster.connection import connected
from flows.cluster.errors import ClusterError
from flows.recipe.cluster import Cluster


@pytest.fixture
def unused() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("named_by", ["cluster.address", "RAY_ADDRESS"])
def test_nobody_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch, unused: str, named_by: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named_by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", unused)
    cluster = Cluster(address=unused if named_by == "cluster.address" else None)
    sentence = f"at {unused}, which {named_by} names .*; start it, or unset {named_by}"
    with pytest.raises(ClusterError, match=sentence), connected(cluster):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:99999999", "no such host:6379"])
def test_an_address_that_cannot_be(address: str) -> None:
    with pytest.raises(ClusterError, match="no Ray cluster answers"), connected(Cluster(address=address)):
        pass


WAITING = """
import signal, sys, time
import ray
from flows.cluster.connection import connected, interruptible
from flows.recipe.cluster import Cluster

class Termination(BaseException):
    "What a flow's own handler raises."

def terminate(*_):
    raise Termination

with connected(Cluster(cpus=1, object_store_gib=0.1)):
    signal.signal(signal.SIGTERM, terminate)
    sleeping = ray.remote(lambda: time.sleep(100)).remote()
    try:
        with interruptible():
            print("waiting", flush=True)
            ray.wait([sleeping])
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGTERM) is terminate
        sys.exit(7)
"""


@pytest.mark.timeout(120)
def test_work_that_waits_for_ray_is_ended_by_a_signal_whoever_listens_to_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 7
    finally:
        process.kill()


def test_sockets_are_not_too_deep_for_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert connection._short_folder() is None
    monkeypatch.setattr("tempfile.tempdir", f"/tmp/{'x' * 70}")
    folder = connection._short_folder()
    assert folder is not None
    assert len(folder + connection.SOCKET) <= connection.LONGEST_SOCKET
    assert os.stat(folder).st_uid == os.getuid()
