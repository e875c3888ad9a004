"""Processes killed in the middle of a stage, on a cluster of nodes: the work ends with the same rows.

The stages run as they do on a cluster (flows/remote/job.py), one after the other on one store; each trial kills something,
runs the stage again where it did not end by itself, and counts what the store holds in the end.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lancedb import connect
from PIL import Image

from flows.cluster.connection import EMBEDDED
from flows.engine.progress import MARK
from flows.engine.stage import Plan, Stage
from flows.recipe.cluster import Reserved
from flows.recipe.files import load
from flows.remote.job import REQUEST, Request
from flows.stages.bank.stage import BANK, PATCHES
from flows.stages.chain import STAGES
from flows.stages.evaluate.stage import REPORT
from flows.stages.ingest.stage import IMAGES
from flows.stages.latents.stage import LATENTS
from flows.stages.train.stage import TRAINING
from infra.processes import HOST, Processes, free_ports, listens
from storage.checkpoints import latest
from storage.images.index import read_index
from storage.tables.latents import Latents
from storage.tracking.tracking import Tracking

pytestmark = [pytest.mark.trials, pytest.mark.timeout(300)]

PICTURES = 320
STEPS = 60
TITLES = {"encoder": "ray::LatentEncoder", "reader": "ray::read_block", "training": "ray::RayTrainWorker",
          "controller": "ray::TrainController"}  # fmt: skip


class Nodes:
    """A head without CPUs, where drivers run, and two nodes that do the work, as three processes of this machine."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.port, client = free_ports(2)
        quiet = EMBEDDED | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_", "MLFLOW_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | quiet | {"PATH": path, "RAY_ADDRESS": f"{HOST}:{self.port}"}
        self._start("head", "--head", f"--port={self.port}", f"--ray-client-server-port={client}", "--num-cpus=0",
                    "--include-dashboard=false")  # fmt: skip
        processes.wait("head", lambda: listens(self.port))
        for name in ("first", "second"):
            self.join(name)

    def join(self, name: str) -> None:
        self._start(name, f"--address={HOST}:{self.port}", "--num-cpus=2", f'--resources={{"{name}": 1}}')

    def _start(self, name: str, *arguments: str) -> None:
        common = ["ray", "start", "--block", "--object-store-memory=150000000", f"--node-ip-address={HOST}"]
        own = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        self.processes.start(name, [*common, *arguments], own)

    def find(self, title: str) -> list[psutil.Process]:
        """Ray's workers that do this now."""
        found = []
        for process in self.processes.members():
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, title: str) -> None:
        """SIGKILL to one worker that does this; waits until there is one."""
        self._victim(title).kill()

    def kill_node_of(self, title: str, replaced: bool = True) -> None:
        """SIGKILL to the raylet whose node does this, and a new node in its place, as a cluster would give it."""
        raylet = self._raylet(title)
        raylet.kill()
        if replaced:
            self.join(f"again-{raylet.pid}")

    def take_node_of(self, title: str, seconds: int) -> psutil.Process:
        """Tells Ray that the node which does this goes in so many seconds; a new one comes. Gives the raylet to kill."""
        raylet = self._raylet(title)
        self.join(f"instead-{raylet.pid}")
        node = next(part for part in raylet.cmdline() if part.startswith("--node_id=")).partition("=")[2]
        asked = ["ray", "drain-node", f"--address={HOST}:{self.port}", f"--node-id={node}", "--reason-message=trial",
                 "--reason=DRAIN_NODE_REASON_PREEMPTION", f"--deadline-remaining-seconds={seconds}"]  # fmt: skip
        subprocess.run(asked, env=self.environment, check=True, capture_output=True, timeout=60)
        return raylet

    def _raylet(self, title: str) -> psutil.Process:
        raylet = self._victim(title).parent()
        assert raylet is not None and "raylet" in raylet.name(), "Ray's workers are children of their node's raylet"
        return raylet

    def _victim(self, title: str) -> psutil.Process:
        for _ in range(400):
            if found := self.find(title):
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"nothing called {title} is running")


class Attempt:
    """One process that builds a stage: what it told, and how it ended."""

    def __init__(self, nodes: Nodes, stage: str, plan: Plan, tracking: Tracking) -> None:
        request = Request.of(next(s for s in STAGES if s.name == stage), plan, tracking, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.remote.job"],
            env=nodes.environment | {REQUEST: request.model_dump_json()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.done = self.rows = self.total = 0
        """Rows an earlier attempt left, rows made by this one, rows in all."""
        self.output: list[str] = []
        self.told = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith(MARK):
                event, value, values = json.loads(line.removeprefix(MARK))
                if event == "total":
                    self.total, self.done, self.rows = value, values.get("done", 0), 0
                if event == "advance":
                    self.rows += value
            self.told.set()

    @property
    def share(self) -> float:
        return (self.done + self.rows) / self.total if self.total else 0.0

    def until(self, share: float) -> Attempt:
        """Waits until this share of the rows is made."""
        while self.share < share and self.process.poll() is None:
            self.told.wait(1)
            self.told.clear()
        assert self.process.poll() is None, "it ended too early: " + "".join(self.output)
        return self

    def killed(self) -> Attempt:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return self

    def ended(self, code: int = 0) -> Attempt:
        assert self.process.wait(250) == code, "".join(self.output)
        return self


# --- what the trials work on -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield Nodes(processes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(PICTURES):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(root / f"{i:04d}.png")
    return root


@pytest.fixture(scope="module")
def work(nodes: Nodes, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(nodes, source, tmp_path_factory.mktemp("home") / "runs")


class Work:
    """One recipe on one store, and what is in it."""

    def __init__(self, nodes: Nodes, source: Path, root: Path) -> None:
        self.nodes = nodes
        recipe = load("emoji", {
            "store": str(root),
            "data": {"source": str(source), "shard_size": 10},
            "train": {"steps": STEPS, "batch": 32, "checkpoint_every": 10, "held_out_every": 30, "sample_every": 0, "log_every": 5},
            "sample": {"steps": 4, "batch": 16},
            "evaluate": {"samples": 256, "kernel_subsets": 2},
            "cluster": {"actors": 1},
            "tracking": {"lease_wait": 120},
        })  # fmt: skip
        self.plan = Plan(recipe)
        self.tracking = Tracking.open(None, self.plan.store, recipe.name)

    def attempt(self, stage: str) -> Attempt:
        return Attempt(self.nodes, stage, self.plan, self.tracking)

    def with_(self, **sections: dict[str, Any]) -> Work:
        """The same work, with other values of a few keys that change nothing of what is made."""
        changed = copy.copy(self)
        old = self.plan.recipe
        changed.plan = Plan(old.model_copy(update={
            name: getattr(old, name).model_copy(update=values) for name, values in sections.items()
        }))  # fmt: skip
        return changed

    def need(self, *stages: str) -> None:
        """Makes what a trial starts from, where an earlier one has not left it."""
        for stage in STAGES:
            if stage.name in stages and self.plan.missing(stage):
                self.attempt(stage.name).ended()

    def forget(self, stage: str) -> None:
        for part in self.stage(stage).wanted(self.plan.recipe):
            self.plan.artifact(part).remove()

    def stage(self, name: str) -> Stage:
        return next(stage for stage in STAGES if stage.name == name)

    def lost_and_doubled(self, stage: str) -> tuple[int, int]:
        """Rows that should be there and are not, and rows that are there twice."""
        assert not self.plan.missing(self.stage(stage)), f"{stage} is not complete"
        expected, found = getattr(self, f"_{stage}")()
        return len(expected - set(found)), len(found) - len(set(found))

    def _pictures(self) -> list[int]:
        index = read_index(self.plan.artifact(IMAGES).uri)
        return [row["sample"] for row in index.to_pylist() if row["kept"]]

    def _ids(self) -> set[int]:
        return {2 * sample + flipped for sample in self._pictures() for flipped in (0, 1)}

    def _ingest(self) -> tuple[set[int], list[int]]:
        return set(range(PICTURES)), self._pictures()

    def _latents(self) -> tuple[set[int], list[int]]:
        table = Latents.open(self.plan.artifact(LATENTS).uri).dataset.to_table(columns=["id"])
        return self._ids(), table["id"].to_pylist()

    def _bank(self) -> tuple[set[int], list[int]]:
        bank = connect(self.plan.artifact(BANK).uri).open_table("bank").to_arrow()["id"].to_pylist()
        assert self.plan.artifact(PATCHES).complete
        return self._ids(), bank

    def _train(self) -> tuple[set[int], list[int]]:
        newest = latest(self.plan.artifact(TRAINING))
        assert newest is not None
        return {self.plan.recipe.train.steps}, [newest.step]

    def _evaluate(self) -> tuple[set[int], list[int]]:
        manifest = self.plan.artifact(REPORT).manifest()
        assert manifest is not None
        kept = [row for row in read_index(self.plan.artifact(IMAGES).uri).to_pylist() if row["kept"]]
        counts = [min(256, sum(row["split"] == split for row in kept)) for split in ("train", "held_out")]
        return {sum(counts)}, [manifest.counts["rows"]]


# --- the trials ------------------------------------------------------------------------------------------------------

BEFORE = {
    "ingest": (),
    "latents": ("ingest",),
    "bank": ("ingest",),
    "train": ("ingest", "latents", "bank"),
    "evaluate": ("ingest", "latents", "bank", "train"),
}


@pytest.mark.parametrize("stage", BEFORE)
def test_the_process_of_a_stage(work: Work, trial: Callable[..., None], stage: str) -> None:
    work.need(*BEFORE[stage])
    first = work.attempt(stage).until(0.4).killed()
    second = work.attempt(stage).ended()
    redone = max(0, first.rows - second.done)
    trial(f"{stage}: its process", "SIGKILL at 40 %", redone, *work.lost_and_doubled(stage), of=first.total)


def test_extraction_killed_at_ninety_percent(work: Work, trial: Callable[..., None]) -> None:
    work.need("ingest")
    work.forget("latents")
    first = work.attempt("latents").until(0.9).killed()
    second = work.attempt("latents").ended()
    redone = max(0, first.rows - second.done)
    trial("latents: its process", "SIGKILL at 90 %", redone, *work.lost_and_doubled("latents"), of=first.total)
    assert redone <= 0.15 * first.total


@pytest.mark.parametrize("who", ["encoder", "reader"])
def test_a_worker_of_an_extraction(work: Work, nodes: Nodes, trial: Callable[..., None], who: str) -> None:
    work.need("ingest")
    work.forget("latents")
    attempt = work.attempt("latents")
    if who == "encoder":
        attempt.until(0.3)
    nodes.kill(TITLES[who])
    attempt.ended()
    trial(
        f"latents: {who}", "SIGKILL", attempt.rows - attempt.total, *work.lost_and_doubled("latents"), of=attempt.total
    )


def test_a_node_during_extraction(work: Work, nodes: Nodes, trial: Callable[..., None]) -> None:
    work.need("ingest")
    work.forget("latents")
    attempt = work.attempt("latents").until(0.3)
    nodes.kill_node_of(TITLES["encoder"])
    attempt.ended()
    trial(
        "latents: a node",
        "SIGKILL of its raylet",
        attempt.rows - attempt.total,
        *work.lost_and_doubled("latents"),
        of=attempt.total,
    )


@pytest.mark.parametrize("what", ["worker", "node"])
def test_training_loses(work: Work, nodes: Nodes, trial: Callable[..., None], what: str) -> None:
    """Ray Train begins a new worker, which goes on from the newest checkpoint."""
    work.need("ingest", "latents", "bank")
    work.forget("train")
    attempt = work.attempt("train").until(0.4)
    rows = attempt.rows
    (nodes.kill if what == "worker" else nodes.kill_node_of)(TITLES["training"])
    attempt.ended()
    redone = max(0, rows - attempt.done)
    trial(f"train: a {what}", "SIGKILL", redone, *work.lost_and_doubled("train"), of=STEPS)
    assert attempt.done > 0 and redone <= 15


def test_training_loses_its_controller(work: Work, nodes: Nodes, trial: Callable[..., None]) -> None:
    work.need("ingest", "latents", "bank")
    work.forget("train")
    first = work.attempt("train").until(0.4)
    nodes.kill(TITLES["controller"])
    first.process.wait(200)
    second = work.attempt("train").ended() if first.process.returncode else first
    trial(
        "train: its controller", "SIGKILL", max(0, first.rows - second.done), *work.lost_and_doubled("train"), of=STEPS
    )


def test_training_is_told_that_its_node_will_go(work: Work, nodes: Nodes, trial: Callable[..., None]) -> None:
    """It writes a checkpoint at once, and goes on elsewhere."""
    work.need("ingest", "latents", "bank")
    work.forget("train")
    longer = work.with_(train={"steps": 3 * STEPS, "checkpoint_every": 1000})
    attempt = longer.attempt("train").until(0.1)
    raylet = nodes.take_node_of(TITLES["training"], seconds=90)
    attempt.ended()
    with suppress(psutil.NoSuchProcess):  # it may have gone by itself once nothing ran there
        raylet.kill()
    assert "made way" in "".join(attempt.output) and attempt.done > 0
    trial("train: its node is drained", "notice of 90 s", 0, *longer.lost_and_doubled("train"), of=3 * STEPS)


def test_training_goes_on_with_fewer_workers(work: Work, nodes: Nodes, trial: Callable[..., None]) -> None:
    """Two workers fill two nodes; where one goes and none comes, the other goes on within its bounds."""
    work.need("ingest", "latents", "bank")
    work.forget("train")
    elastic = {"train_workers": 2, "train_workers_min": 1, "train": Reserved(cpus=2)}
    two = work.with_(cluster=elastic, train={"steps": 2 * STEPS})
    attempt = two.attempt("train").until(0.3)
    rows = attempt.rows
    nodes.kill_node_of(TITLES["training"], replaced=False)
    attempt.ended()
    redone = max(0, rows - attempt.done)
    trial("train: a node, and no other comes", "SIGKILL", redone, *two.lost_and_doubled("train"), of=2 * STEPS)
    assert attempt.done > 0 and redone <= 15
    nodes.join("last")


def test_two_processes_build_the_same_stage(work: Work, trial: Callable[..., None]) -> None:
    """The second waits for the first's lease, and finds its work done."""
    work.need("ingest")
    work.forget("latents")
    both = [work.attempt("latents"), work.attempt("latents")]
    made = sum(attempt.ended().rows for attempt in both)
    trial(
        "latents: started twice",
        "nothing",
        made - both[0].total or made - both[1].total,
        *work.lost_and_doubled("latents"),
    )
