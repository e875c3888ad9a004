"""A process whose main thread stays in code that hears no signal, as where Ray is asked that has ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cancelling import INTERRUPTED, SAID
from storage.store import Store
from storage.tracking.access import client

PROGRAM = """
import ctypes, signal, subprocess, sys
from flows import cancelling
from storage.store import Store
from storage.tracking.tracking import Tracking

cancelling.GRACE, root, ours, seconds = 1.0, sys.argv[1], sys.argv[2], int(sys.argv[3])

def interrupted(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupted)
store = Store(root)
for name in ours.split():
    subprocess.Popen([f"{root}/{name}", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with cancelling.ends_though_stranded():
    tracking = Tracking.open(f"sqlite:///{root}/mlflow.db", store, "work")
    with store.artifact("bank", "work", "0" * 12).lease("work"), tracking.stage_run("bank", None, {}):
        try:
            print("at work", flush=True)
            ctypes.CDLL(None).sleep(seconds)
        finally:
            for _ in range(seconds):  # the first is cut short by the signal
                ctypes.CDLL(None).sleep(1)
"""


def cancelled(root: Path, ours: str, seconds: int) -> tuple[int, str]:
    """Exit code and what was said of a process that is told to end, which takes so many seconds."""
    for name in ("raylet", "gcs_server"):
        (root / name).symlink_to("/bin/sleep")
    words = [sys.executable, "-c", PROGRAM, str(root), ours, str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        told = process.stderr.read()
        return process.wait(), told


def left(root: Path) -> tuple[bool, str]:
    """Whether the lease is free, and the run's status."""
    store = Store(str(root))
    mlflow = client(f"sqlite:///{root}/mlflow.db")
    experiment = mlflow.get_experiment_by_name("work")
    assert experiment is not None
    [run] = mlflow.search_runs([experiment.experiment_id])
    return store.artifact("bank", "work", "0" * 12).holder() is None, run.info.status


@pytest.mark.parametrize("left_of_ray", ["", "raylet", "gcs_server"])
def test_without_its_ray_it_lets_go_of_all_and_says_so(tmp_path: Path, left_of_ray: str) -> None:
    code, told = cancelled(tmp_path, left_of_ray, 600)
    assert code == INTERRUPTED and told.splitlines()[-1] == f"gmem: {SAID}"
    assert left(tmp_path) == (True, "KILLED")


def test_while_its_ray_lives_it_ends_in_its_own_time(tmp_path: Path) -> None:
    code, told = cancelled(tmp_path, "raylet gcs_server", 5)
    assert code == -signal.SIGINT and SAID not in told and "KeyboardInterrupt" in told
    assert left(tmp_path) == (True, "KILLED")
