"""What stage bank keeps of a bank, on a real Ray: which snippets, in how many numbers, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.build import build
from flows.engine.context import Result
from flows.engine.errors import StageError
from flows.engine.progress import Terminal
from flows.engine.stage import Plan
from flows.explore import kept_of, open_bank
from flows.recipe.files import load
from flows.stages.bank.stage import BANK, MEMORY, STAGE
from flows.stages.ingest.stage import IMAGES
from flows.stages.train.stage import TRAINING
from storage.errors import Refused
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.memory import read_memory
from storage.tracking.access import client
from storage.tracking.tracking import Tracking

pytestmark = pytest.mark.usefixtures("a_ray")

DIM, PICTURES, CLASSES = 16, 60, ("flags", "food", "faces")
ENCODER = {"name": "vit", "sha256": "ab"}


def plan_of(folder: Path, **bank: Any) -> Plan:
    cluster = {"cpus": 3, "object_store_gib": 0.1}
    recipe = load("emoji", {"store": str(folder), "bank": bank, "train": {"align": 0}, "cluster": cluster})
    return Plan(recipe, source_fingerprint="pinned")


def with_bank(folder: Path, classes: bool = True) -> Path:
    """A store with a bank of both orientations of pictures of three classes, a direction each; every fourth is held out."""
    plan = plan_of(folder)
    images, artifact = plan.artifact(IMAGES), plan.artifact(BANK)
    random, ids = np.random.default_rng(0), np.arange(2 * PICTURES)
    owner = ids // 2 % 3
    snippets = 4 * np.eye(DIM)[owner] + 0.2 * random.normal(size=(len(ids), DIM))
    named: list[str | None] = [CLASSES[label] if classes else None for label in owner]
    splits: list[str | None] = ["held_out" if number // 2 % 4 == 0 else "train" for number in ids]
    flipped = [bool(number % 2) for number in ids]
    rows = make_rows(ids, snippets, "dataset", classes=named, splits=splits, flipped=flipped, shard="s")
    writer = BankWriter(artifact.uri, DIM, ENCODER)
    writer.commit([write_fragments(artifact.uri, "s", rows)])
    version = writer.finish_bank(ids).version
    for each, details in ((images, {}), (artifact, {"version": version})):
        with each.lease("test") as lease:
            each.commit(each.describe(lease, details=details))
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_bank(tmp_path_factory.mktemp("memory"))


def made(plan: Plan) -> Result:
    tracking = Tracking.open(f"sqlite:///{plan.store.root}/mlflow.db", plan.store, plan.recipe.name)
    return build(STAGE, plan, tracking, None, Terminal("bank"))


def kept_classes(plan: Plan) -> list[int]:
    return sorted(np.unique(read_memory(plan.artifact(MEMORY).uri).kept) % 3)


@pytest.mark.parametrize("choice", ["medoids", "farthest", "balanced"])
def test_three_of_three_clusters_are_one_of_each(store: Path, choice: str) -> None:
    plan = plan_of(store, snippets=3, choice=choice)
    assert made(plan).about == "3 of 45 snippets kept"
    assert kept_classes(plan) == [0, 1, 2]
    memory = read_memory(plan.artifact(MEMORY).uri)
    assert memory.pictures.tolist() == [n for n in range(PICTURES) if n % 4]
    assert np.array_equal(memory.kept % 3, memory.pictures % 3), "each picture has the one of its own cluster"
    bank = open_bank(plan.recipe)
    assert set(bank.sample(30, 0, "split = 'train'")) == set(2 * memory.kept)
    assert len(set(bank.sample(15, 0, "split = 'held_out'"))) == 15
    ids = np.array([2, 3, 10])
    assert bank.conditions(ids.tolist()).equal(bank.snippets(memory.standing(ids).tolist()))


def test_it_is_told_in_manifest_and_mlflow_and_made_once(store: Path) -> None:
    plan = plan_of(store, snippets=0.2, rank=4)
    first = made(plan)
    assert first.about == "9 of 45 snippets kept in 4 numbers each"
    manifest = plan.artifact(MEMORY).manifest()
    assert manifest is not None and manifest.counts == {"rows": 45, "kept": 9, "rank": 4}
    assert manifest.parameters == {"snippets": 0.2, "rank": 4} and manifest.inputs["bank"].version
    metrics = manifest.details["metrics"]
    assert 0.5 < metrics["energy"] < 1 and 0.5 < metrics["cosine"] <= 1
    run = client(f"sqlite:///{store}/mlflow.db").get_run(first.run_id)
    assert run.data.metrics["memory/energy"] == pytest.approx(metrics["energy"])
    assert not made(plan).fresh
    assert set(plan.fingerprints(STAGE)) == {"images", "bank", "memory"}


def test_bank_info_shows_what_is_kept(store: Path) -> None:
    plan = plan_of(store, snippets=0.2, rank=4)
    made(plan)
    manifest = plan.artifact(MEMORY).manifest()
    assert manifest is not None
    settings = ("bank.snippets=0.2", "bank.rank=4", "train.align=0")
    command = ["bank", "info", "emoji", "--store", str(store), *(word for each in settings for word in ("--set", each))]
    said = CliRunner().invoke(app, command).stdout
    assert "9 of 45 snippets; chosen random, at a cosine of" in " ".join(said.split()) and "4 numbers each" in said
    memory = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout.splitlines()[-1])["memory"]
    assert memory == {
        "kept": 9, "of": 45, "choice": "random", "rank": 4, "uri": plan.artifact(MEMORY).uri, **manifest.details["metrics"]
    }  # fmt: skip
    whole = plan_of(store)
    assert kept_of(whole.recipe, open_bank(whole.recipe)) is None


def test_rank_alone_keeps_every_snippet_nearly(store: Path) -> None:
    plan = plan_of(store, rank=DIM - 1)
    assert made(plan).about == f"45 of 45 snippets kept in {DIM - 1} numbers each"
    bank = open_bank(plan.recipe)
    ids = bank.matching("split = 'train'").tolist()
    whole, seen = bank.snippets(ids).float(), bank.conditions(ids).float()
    assert 0 < (whole - seen).norm() < 0.1 * whole.norm()


def test_a_training_is_another_for_what_is_kept_and_the_same_where_all_is(tmp_path: Path) -> None:
    trainings = [
        plan_of(tmp_path, **bank).fingerprint(TRAINING)
        for bank in ({}, {"seed": 3}, {"snippets": 3}, {"snippets": 4}, {"snippets": 3, "seed": 1}, {"rank": 4})
    ]
    assert trainings[0] == trainings[1] and len(set(trainings)) == 5


@pytest.mark.parametrize(
    ("bank", "words"),
    [
        ({"snippets": 46}, "bank.snippets asks for 46 of 45 training pictures"),
        ({"rank": DIM}, f"bank.rank {DIM} is not less than the {DIM} numbers of a snippet; give 1 to 15"),
    ],
)
def test_what_cannot_be_kept_is_told(store: Path, bank: dict[str, Any], words: str) -> None:
    plan = plan_of(store, **bank)
    with pytest.raises(Refused, match=words):
        made(plan)
    assert not plan.artifact(MEMORY).complete
    with pytest.raises(StageError, match=r"has no memory in .* yet; run 'gmem run'"):
        open_bank(plan.recipe)


def test_without_classes_no_choice_is_balanced(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="balanced needs classes, and no picture has one"):
        made(plan_of(with_bank(tmp_path, classes=False), snippets=5, choice="balanced"))
