"""Training workers without Ray Train: alone in this process, and two of them as actors with a process group."""

from __future__ import annotations

import math
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from flows.engine.context import Context
from flows.stages.train.channel import Channel
from flows.stages.train.driver import _relay
from flows.stages.train.preemption import Notice
from flows.stages.train.recovery import SKIPS_ALLOWED
from flows.stages.train.stage import STAGE
from flows.stages.train.worker import Worker, loop
from gmem.settings import SIZES
from gmem.threads import one_thread
from storage import checkpoints
from storage.errors import StoreError
from storage.tables.bank import Bank
from storage.tracking.access import client

Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("a_ray")

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests


def make_small() -> None:
    """The smallest network smaller still: checkpoints of a megabyte."""
    from flows.stages.train import worker  # noqa: F401 - takes its time while the tests of one worker run
    from gmem import settings

    settings.SIZES["T"] = settings.Size(4, 64, 2)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    before = SIZES["T"]
    make_small()
    yield
    SIZES["T"] = before


class Told(Notice):
    """Somebody who asks the training to make way once it has done so many steps."""

    def __init__(self, after: float = math.inf) -> None:
        super().__init__()
        self.steps, self.after = 0, after

    def given(self) -> bool:
        self.steps += 1  # it is asked once a step
        return self.steps >= self.after

    def due(self) -> bool:
        return False


def train(context: Context, after: float = math.inf, spoil: Callable[[Worker], bool] | None = None) -> Worker:
    """Runs a lone worker; `spoil` says whether the gradient of the step it is about to take is NaN."""
    channel = Channel.remote()
    with one_thread():
        worker = Worker(context, channel, 0, 1, "cpu", Told(after))
        if spoil:
            first = next(iter(worker.learner.parameters.values()))
            first.register_hook(lambda gradient: gradient * math.nan if spoil(worker) else gradient)
        try:
            worker.run()
        finally:
            context.run.close()
            worker.heard = ray.get(channel.take.remote())[0]
    return worker


def saved(context: Context, step: int | None = None) -> tuple[Tensors, dict[str, Any]]:
    artifact = context.artifact("training")
    found = checkpoints.latest(artifact) if step is None else checkpoints.at(artifact, step)
    assert found is not None
    return checkpoints.load(found)


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def near(a: Tensors, b: Tensors) -> bool:
    """The same but for rounding: AdamW's first steps make whole steps of the smallest gradients."""
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=2e-3, atol=2e-4) for name in a)


def steps(context: Context) -> list[int]:
    return [each.step for each in checkpoints.all_checkpoints(context.artifact("training"))]


def again(trainings: Any, context: Context, **settings: Any) -> Context:
    return trainings.job(context.artifact("training"), **settings)


def notes(worker: Worker) -> str:
    return "\n".join(value for event, value, _ in worker.heard if event == "note")


@pytest.fixture(scope="module")
def whole(trainings, ranks: Any) -> Context:
    """Eight steps of one worker that nothing disturbed."""
    context = trainings.job()
    train(context)
    return context


# --- one worker ------------------------------------------------------------------------------------------------------


def test_an_interrupted_training_ends_with_the_same_bits(trainings, whole: Context) -> None:
    context = trainings.job()
    worker = train(context, after=3)
    assert steps(context) == [3] and "made way at step 3" in notes(worker)
    train(again(trainings, context), after=2)
    train(again(trainings, context))
    assert steps(context) == [3, 4, 5, 8] and steps(whole) == [4, 8]
    assert same(saved(context)[0], saved(whole)[0]) and saved(context)[1] == saved(whole)[1]
    assert {name.split(".")[0] for name in saved(context)[0]} == {"network", "ema", "optimiser"}


def test_further_averages_change_nothing_else_and_go_on_exactly(trainings, whole: Context) -> None:
    context = trainings.job(emas=(0.5, 0.999))
    train(context, after=3)
    train(again(trainings, context, emas=(0.5, 0.999)))
    undisturbed = trainings.job(emas=(0.5, 0.999))
    train(undisturbed)
    tensors, progress = saved(context)
    assert same(tensors, saved(undisturbed)[0]) and progress == saved(whole)[1]
    further = {name for name in tensors if name.startswith(("ema_5.", "ema_999."))}
    assert same({name: value for name, value in tensors.items() if name not in further}, saved(whole)[0])
    last = checkpoints.latest(context.artifact("training"))
    assert last is not None and {"ema_5.safetensors", "ema_999.safetensors"} < last.manifest.files.keys()
    assert last.averages == context.recipe.train.averages()


def test_a_training_that_routes_tokens_goes_on_exactly(trainings, whole: Context) -> None:
    """The network is of four blocks here, and its head, behind the fourth, is left out, so that one may be gone around."""
    context, undisturbed = (trainings.job(align=0, route=0.5) for _ in range(2))
    train(context, after=3)
    train(again(trainings, context, align=0, route=0.5))
    train(undisturbed)
    assert same(saved(context)[0], saved(undisturbed)[0]) and not same(saved(context)[0], saved(whole)[0])


def test_checkpoints_at_named_steps_stay_and_count_the_seconds_of_all_attempts(trainings, whole: Context) -> None:
    named = {"checkpoint_at": [1, 3], "keep": 1}
    context = trainings.job(**named)
    train(context, after=5)
    train(again(trainings, context, **named))
    assert {1, 3, 8} <= set(steps(context)) and same(saved(context)[0], saved(whole)[0])
    there = checkpoints.all_checkpoints(context.artifact("training"))
    seconds = [each.manifest.details["seconds"] for each in there]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert all(each.manifest.held_out_loss is not None for each in there if each.step in (1, 3, 8))
    mlflow = client(context.tracking_uri)
    models = mlflow.search_logged_models(
        [mlflow.get_run(context.run_id).info.experiment_id], f"source_run_id = '{context.run_id}'"
    )
    assert {each.tags["checkpoint"] for each in models} == {context.store.relative(each.uri) for each in there}


def test_micro_batches_only_round_differently(trainings, whole: Context) -> None:
    context = trainings.job(micro_batch=2)
    train(context)
    assert near(saved(context)[0], saved(whole)[0])


def test_samples_and_their_distance_are_followed(trainings, whole: Context) -> None:
    context = trainings.job(distance_every=4, sample_every=4)
    worker = train(context)
    mlflow = client(context.tracking_uri)
    points = mlflow.get_metric_history(context.run_id, "fd_preview")
    assert [point.step for point in points] == [4, 8] and all(0 < point.value < 1e6 for point in points)
    names = [Path(file.path).name for file in mlflow.list_artifacts(context.run_id, "images")]
    shown = [re.match(r"samples\W+step\W+(\d+)\W", name) for name in names if name.endswith(".png")]
    assert sorted(int(found[1]) for found in shown if found) == [4, 8]
    assert worker.observer is not None
    assert worker.observer.preview.distance() == pytest.approx(points[-1].value, rel=1e-6)
    assert [point.step for point in mlflow.get_metric_history(context.run_id, "held_out/total")] == [4, 8]
    assert same(saved(context)[0], saved(whole)[0])  # looking changes nothing


def test_a_bad_step_is_skipped_and_told(trainings) -> None:
    context = trainings.job()
    worker = train(context, spoil=lambda worker: worker.learner.steps in (2, 5))
    tensors, progress = saved(context)
    assert progress["learner"] == {"steps": 8, "updates": 6} and progress["attempt"] == 0
    assert all(value.isfinite().all() for value in tensors.values())
    events = client(context.tracking_uri).get_metric_history(context.run_id, "events/skipped")
    assert [event.step for event in events] == [2, 5] and "step 2 skipped" in notes(worker)
    table = client(context.tracking_uri).download_artifacts(context.run_id, "events.json")
    assert "skipped" in Path(table).read_text()


def test_after_several_bad_steps_it_goes_back_and_draws_anew_the_same_when_interrupted(
    trainings, whole: Context
) -> None:
    def spoil(worker: Worker) -> bool:
        return worker.recovery.attempt == 0 and worker.learner.steps >= 5

    context = trainings.job(steps=14)
    worker = train(context, spoil=spoil)
    assert worker.recovery.attempt == 1 and "back to step 4" in notes(worker) and steps(context)[-1] == 14
    assert saved(context, 12)[1]["attempt"] == 1
    assert same(saved(context, 4)[0], saved(whole, 4)[0]) and not same(saved(context, 8)[0], saved(whole, 8)[0])
    returned = client(context.tracking_uri).get_metric_history(context.run_id, "events/returned")
    assert [event.step for event in returned] == [5 + SKIPS_ALLOWED + 1]

    killed = trainings.job(steps=14)
    train(killed, after=7, spoil=spoil)  # in the middle of the bad steps
    train(again(trainings, killed, steps=14), spoil=spoil)
    assert saved(killed)[1] == saved(context)[1] and same(saved(killed)[0], saved(context)[0])


def test_looking_at_every_third_step_trains_the_same_skips_alike_and_goes_back(trainings, whole: Context) -> None:
    rarely = {"look_every": 3, "log_every": 100}
    context = trainings.job(**rarely)
    train(context)
    assert same(saved(context)[0], saved(whole)[0]) and saved(context)[1] == saved(whole)[1]

    interrupted = trainings.job(**rarely)
    train(interrupted, after=1)
    assert steps(interrupted) == [3]  # the first look
    train(again(trainings, interrupted, **rarely))
    assert same(saved(interrupted)[0], saved(whole)[0])

    skipping, looking = trainings.job(), trainings.job(**rarely)
    for each in (skipping, looking):
        worker = train(each, spoil=lambda worker: worker.learner.steps in (4, 5))
        events = client(each.tracking_uri).get_metric_history(each.run_id, "events/skipped")
        assert [event.step for event in events] == [4, 5] and notes(worker).count("skipped") == 1
    assert same(saved(looking)[0], saved(skipping)[0])

    lost = trainings.job(steps=14, look_every=7, log_every=100)
    spoilt = train(lost, spoil=lambda worker: worker.recovery.attempt == 0 and worker.learner.steps in range(4, 11))
    assert spoilt.recovery.attempt == 1 and "back to step 4" in notes(spoilt) and steps(lost)[-1] == 14


def test_a_checkpoint_that_does_not_lead_on_is_given_up_and_so_is_a_hopeless_training(trainings) -> None:
    context = trainings.job(steps=40)
    with pytest.raises(ValueError, match=r"does not get beyond step \d+: going back 3 times did not help; lower"):
        train(context, spoil=lambda worker: worker.learner.steps >= 9)
    dropped = client(context.tracking_uri).get_metric_history(context.run_id, "events/dropped")
    assert [event.step for event in dropped] == [8] and steps(context) == [4, 8]  # the second 8, from other draws


def test_a_store_that_is_away_for_a_moment_costs_a_checkpoint_and_no_more(
    trainings, monkeypatch, whole: Context
) -> None:
    def away(*_: Any) -> None:
        monkeypatch.undo()
        raise StoreError("the store cannot be written: check it.")

    context = trainings.job()
    monkeypatch.setattr("flows.stages.train.observer.save", away)
    worker = train(context)
    assert steps(context) == [8] and "no checkpoint at step 4: the store cannot be written" in notes(worker)
    assert same(saved(context)[0], saved(whole)[0])


def test_what_no_further_attempt_would_mend_reaches_the_driver_and_everybody_who_tries_again(trainings) -> None:
    channel = Channel.remote()
    ray.get([channel.fail.remote("lower train.lr"), channel.fail.remote("a later one")])
    with pytest.raises(ValueError, match=r"^lower train.lr$"):
        _relay(channel, Told())  # there is no event to report
    with pytest.raises(ValueError, match=r"^lower train.lr$"):
        loop({"channel": channel})


def test_the_bank_is_pinned_and_tagged_before_it_is_trained_on(trainings) -> None:
    context = trainings.job()
    bank = Bank(context.artifact("bank").uri)
    before = STAGE.pins(context)
    assert before == {"bank": bank.version}
    bank.append(torch.ones(1, bank.dim).numpy(), "external", bank.encoder)
    assert bank.version > before["bank"] and STAGE.pins(context) == before
    assert Bank(bank.artifact).info().tags[f"training-{context.fingerprints['training']}"] == before["bank"]
    assert STAGE.pins(trainings.job()) == {"bank": bank.version}


# --- two workers -----------------------------------------------------------------------------------------------------


@ray.remote(num_cpus=1)
class Rank:
    """One of two workers, each with its share of every batch of five: two pictures and three."""

    def __init__(self) -> None:
        make_small()

    def train(self, context: Context, channel: Any, rank: int, port: int, after: float, bad: bool) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        worker = Worker(context, channel, rank, 2, "cpu", Told(after))
        if bad and rank == 1:
            first = next(iter(worker.learner.parameters.values()))
            first.register_hook(
                lambda gradient: (
                    gradient * (math.nan if worker.recovery.attempt == 0 and worker.learner.steps >= 5 else 1)
                )
            )
        try:
            worker.run()
        finally:
            context.run.close()
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(a_ray) -> Any:
    actors = [Rank.remote() for _ in range(2)]
    yield actors
    for actor in actors:
        ray.kill(actor)


def together(
    ranks: Any, context: Context, after: tuple[float, float] = (math.inf, math.inf), bad: bool = False
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    channel = Channel.remote()
    work = [actor.train.remote(context, channel, rank, port, after[rank], bad) for rank, actor in enumerate(ranks)]
    ray.get(work, timeout=120)


def test_two_workers_train_as_one_also_when_told_to_make_way_and_when_one_goes_on_alone(
    trainings, ranks: Any, whole: Context
) -> None:
    both = trainings.job()
    together(ranks, both)
    alone, pair = saved(whole), saved(both)
    assert pair[1]["learner"] == alone[1]["learner"]
    assert near(pair[0], alone[0])

    context = trainings.job()
    together(ranks, context, after=(math.inf, 3))  # rank 1 alone is told
    assert steps(context) == [3]
    together(ranks, again(trainings, context))
    assert same(saved(context)[0], pair[0]) and saved(context)[1] == pair[1]

    context = trainings.job()
    together(ranks, context, after=(3, math.inf))
    train(again(trainings, context))  # one worker after two
    assert near(saved(context)[0], alone[0])


def test_two_workers_with_half_of_the_weights_each_train_the_same_and_resume_exactly(
    trainings, ranks: Any, whole: Context
) -> None:
    halves = trainings.job(sharded=True)
    together(ranks, halves)
    assert steps(halves) == [4, 8] and near(saved(halves)[0], saved(whole)[0])

    context = trainings.job(sharded=True)
    together(ranks, context, after=(math.inf, 3))
    together(ranks, again(trainings, context, sharded=True))
    assert steps(context) == [3, 4, 8]
    assert same(saved(context)[0], saved(halves)[0]) and saved(context)[1] == saved(halves)[1]


def test_two_workers_go_back_together(trainings, ranks: Any) -> None:
    context = trainings.job(steps=14)
    together(ranks, context, bad=True)
    assert steps(context)[-1] == 14 and saved(context)[1]["attempt"] == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_row_of_a_batch_belongs_to_one_worker_however_many_there_are(world: int) -> None:
    from flows.stages.train.worker import share

    rows = [row for rank in range(world) for row in range(5)[share(5, rank, world)]]
    assert rows == list(range(5))
