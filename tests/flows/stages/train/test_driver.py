"""The whole of stage train by Ray Train with two workers, which are killed and told to go while they work.

Each start of two workers takes Ray Train a while, so these run with the trials.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
import torch

from flows.engine.context import Context
from flows.stages.train import driver as train
from storage.checkpoints import all_checkpoints, latest, load
from storage.tables.bank import Bank
from storage.tracking.access import client

pytestmark = [pytest.mark.trials, pytest.mark.timeout(300), pytest.mark.usefixtures("a_ray")]

STEPS = 60
"""More than are made before the checkpoint at step 4 is seen and somebody is killed."""


class Heard:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.notes: list[str] = []

    def total(self, rows: int, done: int = 0) -> None:
        self.starts.append(done)

    def advance(self, rows: int, **values: float) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def two_workers(trainings: Any, **settings: Any) -> Context:
    context = trainings.job(checkpoint_every=4, held_out_every=500, log_every=10, **settings)
    cluster = context.recipe.cluster.model_copy(update={"train_workers": 2})
    return context.model_copy(update={"recipe": context.recipe.model_copy(update={"cluster": cluster})})


def newest_worker() -> psutil.Process:
    """One of the present training's: those of an earlier one may still be ending."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return max(found, key=lambda process: process.create_time())


def after_a_checkpoint(context: Context, act: Callable[[], Any]) -> threading.Thread:
    """Does something to a training that is under way."""

    def wait() -> None:
        while latest(context.artifact("training")) is None:
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def weights(context: Context) -> tuple[int, dict[str, torch.Tensor]]:
    checkpoint = latest(context.artifact("training"))
    assert checkpoint is not None
    return checkpoint.step, load(checkpoint)[0]


@pytest.fixture(scope="module")
def undisturbed(trainings) -> dict[str, torch.Tensor]:
    context = two_workers(trainings, steps=STEPS)
    train.run(context, Heard())
    context.run.close()
    return weights(context)[1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_or_told_to_go_costs_a_few_steps_and_no_bit(
    trainings, undisturbed: dict[str, torch.Tensor], sign: signal.Signals
) -> None:
    context, progress = two_workers(trainings, steps=STEPS), Heard()
    thread = after_a_checkpoint(context, lambda: newest_worker().send_signal(sign))
    made = train.run(context, progress)
    context.run.close()
    thread.join()
    assert made["training"].counts == {"rows": STEPS} and len(progress.starts) == 2 and progress.starts[1] >= 4
    step, ours = weights(context)
    assert step == STEPS and all(torch.equal(value, undisturbed[name]) for name, value in ours.items())
    assert progress.notes[0].startswith("starting 2 training workers")
    if sign is signal.SIGTERM:
        assert f"made way at step {progress.starts[1]}, with a checkpoint" in progress.notes
    history = client(context.tracking_uri).get_metric_history(context.run_id, "loss/total")
    assert {point.step for point in history} == set(range(10, STEPS + 1, 10))
    assert not context.store.files.exists(context.artifact("training").path("ray"))
    bank = Bank(context.artifact("bank").uri)
    checkpoint = latest(context.artifact("training"))
    assert checkpoint is not None and checkpoint.manifest.bank is not None
    assert bank.info().tags[f"training-{context.fingerprints['training']}"] == checkpoint.manifest.bank.version


def test_an_interrupt_of_the_driver_stops_all_workers_with_a_checkpoint(trainings) -> None:
    context, progress = two_workers(trainings, steps=100_000), Heard()

    def interrupt(rows: int, **_: float) -> None:
        if latest(context.artifact("training")) and "stopping after a last checkpoint" not in progress.notes:
            raise KeyboardInterrupt

    progress.advance = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train.run(context, progress)
    context.run.close()
    step = weights(context)[0]
    assert f"stopped at step {step}, with a checkpoint" in progress.notes and step < 100_000
    assert len(all_checkpoints(context.artifact("training"))) > 1
