from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from storage import lease as leases
from storage.store import Artifact, LeaseHeld, LeaseLost, Store

TTL = 1.0

# Another run: takes the lease, says its number, then tries to commit when told to, and says what came of it.
RUN = """
import sys
from storage import lease as leases
from storage.store import Store, StoreError
root, ttl, elsewhere = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "elsewhere"
if elsewhere:  # as on another machine: our process number says nothing to those who wait
    leases._process = lambda: "other-machine/1"
artifact = Store(root).artifact("latents", "emoji", "0" * 12)
with artifact.lease("another run", ttl=ttl) as lease:
    print(lease.number, flush=True)
    sys.stdin.readline()
    try:
        artifact.commit(artifact.describe(lease, details={"by": "another run"}))
        print("committed", flush=True)
    except StoreError as problem:
        print(type(problem).__name__, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def artifact(root: str) -> Artifact:
    return Store(root).artifact("latents", "emoji", "0" * 12)


@contextmanager
def another_run(artifact: Artifact, where: str = "here", ttl: float = TTL) -> Iterator[subprocess.Popen[str]]:
    """A second process that holds the lease once this returns."""
    command = [sys.executable, "-c", RUN, artifact.store.root, str(ttl), where]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "1"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_living_holder_keeps_others_out_and_they_are_told_who_it_is(artifact: Artifact) -> None:
    with another_run(artifact, ttl=2.0) as process:
        began = time.monotonic()
        told = rf"built by another run \(process {process.pid} on .*\) \(lease 1\)"
        with pytest.raises(LeaseHeld, match=told), artifact.lease("we", wait=2.5):
            pass
        assert time.monotonic() - began >= 2.5  # longer than the ttl: its counter kept moving
        assert say(process) == "committed"
    found = artifact.manifest()
    assert found is not None and found.lease == 1


def test_who_waits_gets_it_as_soon_as_it_is_free(artifact: Artifact) -> None:
    with another_run(artifact, ttl=30) as process:
        threading.Timer(0.5, lambda: (say(process), say(process))).start()
        began = time.monotonic()
        with artifact.lease("we") as lease:
            assert lease.number == 2
            assert 0.4 < time.monotonic() - began < 15
        found = artifact.manifest()
        assert found is not None and found.details == {"by": "another run"}


def test_a_killed_holder_elsewhere_is_waited_out(artifact: Artifact) -> None:
    with another_run(artifact, "elsewhere") as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        with artifact.lease("we", wait=0, ttl=TTL) as lease:
            assert lease.number == 2
            assert time.monotonic() - began >= TTL * 0.9
            artifact.commit(artifact.describe(lease))
    assert artifact.complete


def test_a_killed_holder_on_this_machine_is_recognised_at_once(artifact: Artifact) -> None:
    with another_run(artifact, ttl=600) as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        with artifact.lease("we", wait=0) as lease:
            assert lease.number == 2
        assert time.monotonic() - began < 5


def test_a_holder_that_stood_still_cannot_commit_any_more(artifact: Artifact) -> None:
    with another_run(artifact) as process:
        process.send_signal(signal.SIGSTOP)
        with artifact.lease("we", wait=0, ttl=TTL) as lease:
            assert lease.number == 2
            process.send_signal(signal.SIGCONT)
            assert say(process) == "LeaseLost"
            assert not artifact.complete
            artifact.commit(artifact.describe(lease, details={"by": "us"}))
            say(process)
            process.wait(timeout=20)  # letting go of what it no longer has disturbs nobody
            lease.check()
    found = artifact.manifest()
    assert found is not None and found.details == {"by": "us"}


def test_of_many_who_want_it_one_at_a_time_has_it(artifact: Artifact) -> None:
    inside, most, numbers = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        with artifact.lease("thread", ttl=5) as lease:
            inside += 1
            most = max(most, inside)
            numbers.append(lease.number)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and numbers == [1, 2, 3, 4, 5]
    assert len(artifact.store.files.names(artifact.path("lease"))) == 1


def test_a_holder_learns_that_it_lost_the_lease(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with artifact.lease("we", ttl=TTL) as lease:
        state = leases.LeaseState(number=2, holder="a rival", ttl=TTL)
        artifact.store.files.write(artifact.path("lease", "00000002.json"), state.model_dump_json().encode())
        deadline = time.monotonic() + 5
        while "taken over by another run" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert caplog.text.count("taken over by another run") == 1
        with pytest.raises(LeaseLost, match=r"lease 2, this one was 1"):
            lease.check()
    assert leases.current(artifact.store.files, artifact.uri) == state


def test_a_lease_file_cut_in_half_expires_like_any_other(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TTL", TTL)
    artifact.store.files.write(artifact.path("lease", "00000004.json"), b'{"number": 4, "hol')
    with artifact.lease("we", ttl=TTL) as lease:
        assert lease.number == 5


def test_the_lease_is_let_go_when_the_work_fails(artifact: Artifact) -> None:
    with pytest.raises(RuntimeError), artifact.lease("we"):
        raise RuntimeError
    assert artifact.holder() is None
    with artifact.lease("we again", wait=0) as lease:
        assert lease.number == 2 and f"process {os.getpid()}" in str(artifact.holder())
        artifact.require_lease(2)
