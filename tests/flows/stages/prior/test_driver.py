"""Stage prior on a real Ray: learned, continued, judged, and drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.engine.build import build
from flows.engine.context import Context, Result
from flows.engine.errors import StageError
from flows.engine.progress import Terminal
from flows.engine.stage import Plan, require_wanted
from flows.explore import draw_snippets, open_bank, open_network
from flows.models.snippets import open_prior
from flows.recipe.files import load
from flows.stages.bank.stage import BANK, MEMORY
from flows.stages.chain import STAGES, stages_of
from flows.stages.prior.stage import PRIOR, STAGE
from gmem.prior import Prior
from storage.checkpoints import CheckpointManifest, all_checkpoints, latest, save
from storage.errors import Refused, StoreError
from storage.retention.clean import clean
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.memory import Memory
from storage.tracking.access import client
from storage.tracking.tracking import Tracking

pytestmark = pytest.mark.usefixtures("a_ray")

DIM, PICTURES, CLASSES = 16, 120, ("flags", "food", "faces")
ENCODER = {"name": "vit", "sha256": "ab"}
SMALL = {"width": 64, "depth": 2, "batch": 64, "lr": 3e-3, "ema": 0.97, "log_every": 10}


def plan_of(folder: Path, steps: int, **settings: Any) -> Plan:
    prior = SMALL | settings | {"steps": steps}
    cluster = {"cpus": 3, "object_store_gib": 0.1}
    return Plan(load("emoji", {"store": str(folder), "prior": prior, "cluster": cluster}))


def with_bank(folder: Path) -> Path:
    """A store whose bank has snippets around one direction for each class; every fourth is held out."""
    artifact = plan_of(folder, 0).artifact(BANK)
    random, ids = np.random.default_rng(0), 2 * np.arange(PICTURES)
    labels = np.arange(PICTURES) % 3
    snippets = 4 * np.eye(DIM)[labels] + 0.2 * random.normal(size=(PICTURES, DIM))
    rows = make_rows(
        ids,
        snippets,
        "dataset",
        labels=labels.tolist(),
        classes=[CLASSES[label] for label in labels],
        splits=["held_out" if number % 4 == 0 else "train" for number in range(PICTURES)],
        shard="s",
    )
    writer = BankWriter(artifact.uri, DIM, ENCODER)
    writer.commit([write_fragments(artifact.uri, "s", rows)])
    version = writer.finish_bank(ids).version
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease, details={"version": version}))
    return folder


def learned(plan: Plan) -> Result:
    tracking = Tracking.open(f"sqlite:///{plan.store.root}/mlflow.db", plan.store, plan.recipe.name)
    return build(STAGE, plan, tracking, None, Terminal("prior"))


def _prior(plan: Plan) -> Prior:
    checkpoint = latest(plan.artifact(PRIOR))
    assert checkpoint is not None
    return open_prior(checkpoint)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_bank(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def first(store: Path) -> Result:
    return learned(plan_of(store, 300))


def test_it_learns_is_judged_and_says_so_everywhere(store: Path, first: Result) -> None:
    assert first.fresh and first.rows == 300
    quality = first.details["metrics"]
    assert quality["frechet"] < 0.25, "of random directions it is about 1"
    assert first.details["lines"][0].startswith("drawn snippets lie at a Fréchet distance of")
    mlflow = client(f"sqlite:///{store}/mlflow.db")
    assert first.run_id is not None
    points = mlflow.get_metric_history(first.run_id, "held_out")
    assert [point.step for point in points] == list(range(10, 301, 10))
    assert min(point.value for point in points) < points[0].value
    (checkpoint,) = all_checkpoints(plan_of(store, 300).artifact(PRIOR))
    bank, used = open_bank(plan_of(store, 300).recipe), checkpoint.manifest.bank
    assert used is not None and used.version == bank.version and checkpoint.manifest.encoder == bank.encoder
    assert f"prior-{checkpoint.manifest.training}" in bank.info().tags
    manifest = plan_of(store, 300).artifact(PRIOR).manifest()
    assert manifest is not None and manifest.details["encoder"] == ENCODER
    assert manifest.counts == {"rows": 300, "learned": 90, "held_out": 30}
    assert manifest.inputs["bank"].version == bank.version


def test_more_steps_go_on_with_the_same_bits(store: Path, first: Result, tmp_path: Path) -> None:
    other = with_bank(tmp_path)
    assert learned(plan_of(other, 20, seed=3)).rows == 20
    assert learned(plan_of(other, 40, seed=3)).rows == 40
    assert not plan_of(other, 30, seed=3).missing(STAGE)
    learned(plan_of(store, 40, seed=3))
    ours, theirs = (_prior(plan_of(folder, 40, seed=3)).state_dict() for folder in (store, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_of_a_smaller_memory_it_learns_what_is_kept(store: Path) -> None:
    plan = plan_of(store, 10)
    plan = Plan(plan.recipe.model_copy(update={"bank": plan.recipe.bank.model_copy(update={"snippets": 6.0})}))
    artifact = plan.artifact(MEMORY)
    pictures = np.array([number for number in range(PICTURES) if number % 4])
    Memory(pictures, pictures[np.arange(len(pictures)) % 6]).write(artifact.uri)
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    learned(plan)
    manifest = plan.artifact(PRIOR).manifest()
    assert manifest is not None and manifest.counts == {"rows": 10, "learned": 6, "held_out": 30}
    assert manifest.inputs["memory"].fingerprint == artifact.fingerprint
    assert plan.fingerprint(PRIOR) != plan_of(store, 10).fingerprint(PRIOR)


def test_drawn_snippets_are_of_their_class_and_are_nobodys(store: Path, first: Result) -> None:
    recipe = plan_of(store, 300).recipe
    bank = open_bank(recipe)
    drawn = draw_snippets(recipe, bank, 20, "food")
    classes = bank.rows(drawn.nearest.tolist(), ["class"])["class"].to_pylist()
    assert classes.count("food") >= 18 and set(drawn.snippets.labels.tolist()) == {1}
    assert (drawn.similarity > 0.8).all() and (drawn.similarity < 1 - 1e-6).all()
    with pytest.raises(Refused, match="no class 'nobody'; its classes are faces, flags, food"):
        draw_snippets(recipe, bank, 1, "nobody")


def test_an_edited_bank_asks_for_another_prior(store: Path, first: Result, tmp_path: Path) -> None:
    plan = plan_of(with_bank(tmp_path), 10)
    learned(plan)
    bank = open_bank(plan.recipe)
    bank.withdraw(reason="a test", ids=[2])
    again = plan_of(tmp_path, 10)
    assert again.missing(STAGE) and "bank_revision 1 -> 2" in again.why(STAGE)
    assert learned(again).fresh and not plan_of(tmp_path, 10).missing(STAGE)
    (checkpoint,) = all_checkpoints(again.artifact(PRIOR))
    assert checkpoint.manifest.bank is not None and checkpoint.manifest.bank.version == bank.version


def test_it_is_not_taken_for_a_network(store: Path, first: Result) -> None:
    plan = plan_of(store, 300)
    with pytest.raises(StoreError, match="holds a prior, which makes snippets and no pictures; name a training"):
        open_network(plan.recipe, plan.artifact(PRIOR).folder)


def test_an_edit_in_the_moment_of_its_beginning_is_noticed(tmp_path: Path) -> None:
    plan = plan_of(with_bank(tmp_path), 10).settled()
    planned = {"prior": plan.parameters(PRIOR)}
    context = Context(
        recipe=plan.recipe,
        fingerprints=plan.fingerprints(STAGE),
        parameters=planned,
        leases={},
        tracking_uri="",
        run_id="",
    )
    open_bank(plan.recipe).withdraw(reason="a test", ids=[2])
    with pytest.raises(StageError, match="edited in the moment in which the prior began"):
        STAGE.pins(context)


def test_one_that_was_interrupted_is_no_leftover(tmp_path: Path) -> None:
    """Its checkpoint is what the next run goes on from; a folder without one is."""
    plan = plan_of(with_bank(tmp_path), 10)
    begun, empty = plan.artifact(PRIOR), plan.store.artifact("prior", "emoji", "0" * 12)
    save(begun, 2, {"network.w": torch.zeros(3)}, {}, CheckpointManifest(step=2, network={}))
    plan.store.write_bytes(empty.path("half"), b"x")
    removed = {removal.folder for removal in clean(plan.store, remove=True).removals}
    assert removed == {empty.folder} and latest(begun) is not None


def test_a_recipe_without_steps_has_no_such_stage(store: Path) -> None:
    plan = plan_of(store, 0)
    assert STAGE in STAGES and STAGE not in stages_of(plan.recipe) and not plan.missing(STAGE)
    with pytest.raises(StageError, match=r"asks for nothing of stage prior; set prior\.steps"):
        require_wanted(STAGE, plan.recipe)
