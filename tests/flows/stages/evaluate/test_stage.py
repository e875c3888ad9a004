"""What an evaluation rests on: the bank as it is now, and the checkpoint of the steps that were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from flows.commands.run import summary
from flows.console import show
from flows.engine.build import build
from flows.engine.context import Context, Result
from flows.engine.errors import StageError
from flows.engine.estimate import estimates
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK
from flows.stages.bank.stage import STAGE as BANK_STAGE
from flows.stages.evaluate.stage import REPORT, SAMPLES, STAGE, STATISTICS
from flows.stages.ingest.stage import IMAGES
from flows.stages.subject import step_of
from flows.stages.train.stage import STAGE as TRAIN_STAGE
from flows.stages.train.stage import TRAINING
from storage.checkpoints import CheckpointManifest, save
from storage.errors import StoreError
from storage.ids import id_of
from storage.images.index import read_index
from storage.images.shards import ShardPlan, write_index, write_shard
from storage.tables import bank_rows
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_writer import BankWriter
from storage.tracking.tracking import Tracking
from tests.flows.stages.evaluate.test_driver import SHARD, Quiet, home, recipe, uris  # noqa: F401  (fixtures)

DIM, ENCODER = 16, {"name": "vit", "sha256": "ab"}


@pytest.fixture(scope="module")
def chosen(home: Path, uris: dict[str, str]) -> Recipe:  # noqa: F811
    """A network from elsewhere on the recipe's own bank, whose pictures and rows are there."""
    made = recipe(home, network=uris["large"], samples=4, memorisation=False)
    made = made.model_copy(update={"train": made.train.model_copy(update={"align": 0.0})})  # no patch tokens
    plan = Plan(made)
    images, bank = plan.artifact(IMAGES), plan.artifact(BANK)
    shards = ShardPlan(made.source, 64, 0.4)
    write_shard(images.uri, 0, plan.listing.slice(0, SHARD), shards)
    write_index(images.uri, 1, shards)
    index = read_index(images.uri)
    ids = id_of(index["sample"].to_numpy(), np.zeros(len(index), bool))
    snippets = np.random.default_rng(0).normal(size=(len(ids), DIM))
    writer = BankWriter(bank.uri, DIM, ENCODER)
    rows = make_rows(ids, snippets, "dataset", splits=index["split"].to_pylist(), shard="a")
    writer.commit([bank_rows.write_fragments(bank.uri, "a", rows)])
    version = writer.finish_bank(ids).version
    for artifact, details in ((images, {}), (bank, {"version": version})):
        with artifact.lease("test") as lease:
            artifact.commit(artifact.describe(lease, counts={"rows": len(ids)}, details=details))
    return made


@pytest.fixture(scope="module")
def tracking(chosen: Recipe) -> Tracking:
    plan = Plan(chosen)
    return Tracking.open(f"sqlite:///{plan.store.root}/mlflow.db", plan.store, "edits")


def read_by(result: Result, tracking: Tracking) -> tuple[int, int]:
    """The bank's version as the report's samples and MLflow name it."""
    manifest = json.loads(Path(result.artifacts["samples"], "manifest.json").read_text())
    run = mlflow.MlflowClient(tracking.uri).get_run(str(result.run_id))
    digests = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    assert manifest["details"]["bank"]["version"] == manifest["inputs"]["bank"]["version"]
    return manifest["inputs"]["bank"]["version"], int(digests["emoji-bank"].partition("@")[2])


def context_of(plan: Plan) -> Callable[[int], Context]:
    """An evaluation that was planned on a revision of the bank."""
    return lambda revision: Context(
        recipe=plan.recipe,
        fingerprints=plan.fingerprints(STAGE),
        parameters={"samples": {"bank": None, "bank_revision": revision}},
        leases={},
        tracking_uri="",
        run_id="",
    )


def test_an_edited_bank_shows_in_the_plan_and_is_evaluated_again(
    chosen: Recipe,
    tracking: Tracking,
    a_ray: None,
) -> None:
    plan = Plan(chosen)
    bank = Bank(plan.artifact(BANK).uri)
    built = bank.version
    first = build(STAGE, plan, tracking, None, Quiet())
    assert read_by(first, tracking) == (built, built) and not plan.missing(STAGE)
    assert "bank_revision" not in plan.parameters(SAMPLES)

    ids = bank.matching()
    bank.append(np.ones((1, DIM)), "external", bank.encoder, reason="more")
    bank.withdraw("asked for", [int(ids[0])])
    revision = bank.content_revision
    assert plan.why(STAGE) == f"changed: bank_revision 1 -> {revision}"
    assert plan.missing(STAGE) == [SAMPLES, REPORT] and plan.done(STATISTICS)
    begun = context_of(plan)  # whoever planned before the edits, reads what was there then
    assert STAGE.pins(begun(1)) == {"bank": built} and STAGE.pins(begun(revision)) == {"bank": bank.version}
    with pytest.raises(StageError, match="was edited just now; run the stage again"):
        STAGE.pins(begun(revision + 1))
    [line] = estimates([BANK_STAGE], plan)
    assert line.why == f"there already, edited since: revision 1 -> {revision}"

    again = build(STAGE, plan, tracking, None, Quiet())
    assert read_by(again, tracking) == (bank.version, bank.version) and bank.version > built
    assert again.artifacts["statistics"] == first.artifacts["statistics"]
    [protocol] = {
        r["protocol"]["snippets"]
        for r in json.loads(Path(again.artifacts["report"], "report.json").read_text())
        if r["subject"].startswith("samples of train")
    }
    assert protocol.endswith(f"of the bank's revision {revision}")
    assert not plan.missing(STAGE)


@pytest.fixture
def trained(home: Path, tmp_path: Path) -> Recipe:  # noqa: F811
    """A training of 40 steps that keeps its checkpoints at 20 and 40."""
    made = asked(recipe(home).model_copy(update={"store": str(tmp_path)}), 40)
    plan = Plan(made)
    artifact = plan.artifact(TRAINING)
    with artifact.lease("test") as lease:
        for step, loss in ((20, 0.5), (40, 0.1)):
            manifest = CheckpointManifest(step=step, network={}, held_out_loss=loss)
            save(artifact, step, {"ema.a": torch.zeros(1)}, {}, manifest)
        inputs = {"bank": plan.artifact(BANK).reference(3)}
        artifact.commit(artifact.describe(lease, counts={"rows": 40}, inputs=inputs))
    return made


def asked(recipe: Recipe, steps: int, checkpoint: str = "latest") -> Recipe:
    train = recipe.train.model_copy(update={"steps": steps})
    evaluate = recipe.evaluate.model_copy(update={"checkpoint": checkpoint})
    return recipe.model_copy(update={"train": train, "evaluate": evaluate})


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_fewer_steps_than_there_are_take_the_checkpoint_at_or_below_them(trained: Recipe, checkpoint: str) -> None:
    steps = {steps: step_of(Plan(asked(trained, steps, checkpoint))) for steps in (20, 30, 40, 50)}
    assert steps == {20: 20, 30: 20, 40: 40, 50: 50}  # the last is yet to be trained
    about = {steps: TRAIN_STAGE.about(Plan(asked(trained, steps))) for steps in (30, 40)}
    assert about == {30: "with 40 steps, 30 were asked for", 40: "with 40 steps"}
    assert STAGE.about(Plan(asked(trained, 30))) == "of the network at step 20"
    [line] = estimates([TRAIN_STAGE], Plan(asked(trained, 30)))
    assert not line.runs and line.why == "there already, with 40 steps, 30 were asked for"
    kept = sum(
        file.stat().st_size for file in Path(trained.store).rglob("training/*/checkpoints/**/*") if file.is_file()
    )
    assert line.rows == 40 and line.bytes >= kept > 0, "counted, where there is something to count"


def test_a_plan_counts_samples_of_both_splits() -> None:
    evaluated = load("emoji", {"data": {"held_out": 0.1}, "evaluate": {"samples": 50}})
    assert [STAGE.rows(evaluated, pictures) for pictures in (1000, 100, 20)] == [100, 60, 20]


def test_a_training_names_the_version_of_an_edited_bank_that_it_goes_on_with(trained: Recipe) -> None:
    plan = Plan(trained)
    artifact = plan.artifact(BANK)
    with artifact.lease("test") as lease:
        bank = Bank.create(artifact.uri, DIM, ENCODER)
        bank.append(np.ones((1, DIM)), "external", ENCODER)
        artifact.commit(artifact.describe(lease))
    assert TRAIN_STAGE.about(plan) == "with 40 steps, on the bank's version 3"


def test_fewer_steps_than_any_checkpoint_has_are_refused_in_a_sentence(trained: Recipe) -> None:
    plan = Plan(asked(trained, 10))
    with pytest.raises(StoreError, match=r"of the first 10 steps of .* no checkpoint is kept \(kept are 20, 40\)"):
        estimates([STAGE], plan)


def test_a_runs_table_says_of_each_stage_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(
        stage="train",
        unit="steps",
        fresh=False,
        seconds=1.0,
        rows=40,
        artifacts={},
        versions={},
        run_id=None,
        store="runs",
        details={},
        about="with 40 steps, 30 were asked for",
    )
    said: list[Any] = []
    summary([result], 1.0, "mlflow ui", said.append)
    show(said[0])
    assert "with 40 steps" in capsys.readouterr().out
