"""A stage that is cancelled while the embedded Ray ends as well: its process comes to its end soon, and the same goes on.

Whoever cancels a process often ends all that belongs to it at once, Ray's processes too, as Prefect and containers do. What
would then ask Ray for anything waits in vain.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from flows.engine.stage import Plan, Stage
from flows.recipe.files import assignments, load
from flows.stages.chain import STAGES
from storage.store import Artifact
from storage.tracking.access import client
from storage.tracking.tracking import Tracking

pytestmark = [pytest.mark.trials, pytest.mark.timeout(900)]

COMMAND = "from flows.engine.progress import Terminal; Terminal.__init__.__defaults__ = (0.0,); from flows import cli; cli.main()"
"""The command, which tells of each piece of its work."""
SMALL = ["train.steps=2", "train.batch=8", "train.sample_every=0", "evaluate.samples=64", "sample.steps=6",
         "sample.batch=8", "prior.steps=600", "prior.log_every=2", "selection.count=96", "selection.shard_size=8",
         "data.shard_size=8", "cluster.cpus=2", "cluster.object_store_gib=0.3"]  # fmt: skip
PICTURES = 160
SAID = "the same command goes on from there"
SOON = 20.0
"""Seconds within which a cancelled process says so, when all is let go of; Prefect kills it after thirty."""


def draw(folder: Path) -> Path:
    """Pictures of coloured blotches."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


class Work:
    """Stages of the demo's recipe on one store, and the command that builds them."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "runs"
        self.settings = [*SMALL, f"data.source={draw(folder / 'pictures')}"]
        self.plan = Plan(load("emoji", assignments(self.settings) | {"store": str(self.store)}))
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
        self.environment = ours | {"PREFECT_HOME": str(folder / "prefect"), "XDG_STATE_HOME": str(folder / "state")}

    def stage(self, name: str) -> Stage:
        return next(stage for stage in STAGES if stage.name == name)

    def missing(self, name: str) -> list[Artifact]:
        return [self.plan.artifact(output) for output in self.plan.missing(self.stage(name))]

    def begin(self, name: str) -> Attempt:
        settings = [part for pair in self.settings for part in ("--set", pair)]
        words = [sys.executable, "-c", COMMAND, "stage", name, "emoji", *settings, "--store", str(self.store)]
        return Attempt(name, words, self.environment)

    def statuses(self, stage: str) -> list[str]:
        """Of the stage's runs in MLflow, the newest first."""
        mlflow = client(Tracking.open(None, self.plan.store, "emoji").uri)
        experiment = mlflow.get_experiment_by_name("emoji")
        assert experiment is not None
        runs = mlflow.search_runs([experiment.experiment_id], f"tags.`gmem.stage` = '{stage}'")
        return [run.info.status for run in runs]


class Attempt:
    """One command at work."""

    def __init__(self, stage: str, words: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.output: list[str] = []
        self.at_work, self.said = threading.Event(), threading.Event()
        self._told = re.compile(rf"{stage} +([\d,]+)/")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if (told := self._told.match(line)) and told[1] != "0":
                self.at_work.set()
            if SAID in line:
                self.said.set()
        self.at_work.set()

    def until_at_work(self) -> Attempt:
        assert self.at_work.wait(400) and self.process.poll() is None, "".join(self.output)
        return self

    def cancelled(self, signalled: Callable[[psutil.Process], bool]) -> float:
        """Sends SIGTERM to it and to those below it that `signalled` chooses; seconds until it says that it was."""
        everybody = psutil.Process(self.process.pid).children(recursive=True)
        began = time.monotonic()
        for process in [*filter(signalled, everybody), psutil.Process(self.process.pid)]:
            with suppress(psutil.Error):
                process.terminate()
        self.said.wait(120)
        seconds = time.monotonic() - began
        self.ended(130)
        return seconds

    def ended(self, code: int = 0) -> str:
        try:
            found = self.process.wait(400)
        finally:
            self.close()
        self._reader.join(10)
        assert found == code, "".join(self.output)
        return "".join(self.output)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def is_rays(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(re.search(r"raylet|gcs_server|/ray/|^ray::", " ".join(process.cmdline())))
    return False


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("cancels"))


MADE = ("ingest", "latents", "bank", "prior", "train")
BEFORE = {stage: MADE[:place] for place, stage in enumerate(MADE) if stage != "train"} | dict.fromkeys(
    ("evaluate", "sample"), MADE
)


@pytest.mark.parametrize("stage", BEFORE)
def test_a_stage_is_cancelled_with_its_ray(work: Work, trial: Callable[..., None], stage: str) -> None:
    for needed in BEFORE[stage]:
        if work.missing(needed):
            work.begin(needed).ended()
    attempt = work.begin(stage).until_at_work()
    seconds = attempt.cancelled(is_rays)
    output = "".join(attempt.output)
    assert SAID in output and "Traceback" not in output, output
    left = work.missing(stage)
    assert left, "it was cancelled too late"
    for artifact in left:
        assert artifact.holder() is None, f"{artifact.uri} is held"
        assert artifact.summary()["state"] != "building"
    assert work.statuses(stage) == ["KILLED"]
    work.begin(stage).ended()
    assert not work.missing(stage) and work.statuses(stage)[0] == "FINISHED"
    trial(f"{stage}: its process and Ray", "SIGTERM", 0, 0, 0, outcome=f"let go after {seconds:.0f} s, completed")
    assert seconds < SOON, output
