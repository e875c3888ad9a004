"""The best point of an experiment in MLflow's registry, with its own sampler and average."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.engine.stage import Plan
from flows.experiments.curves import Point
from flows.experiments.registering import best_of, register
from flows.models.resolve import open_network
from flows.recipe.files import load
from flows.recipe.model import Recipe
from gmem.network import Network
from storage.checkpoints import Checkpoint, CheckpointManifest, save
from storage.checkpoints import load as load_tensors
from storage.store import Store
from storage.tracking.access import client
from storage.tracking.tracking import Tracking, TrackingError
from tests.flows.models.test_generation import CONFIG, STATISTICS

KEY = "train/samples/fd-x"


def point(arm: str, distance: float, seed: int = 0, step: int = 1) -> Point:
    return Point(arm, seed, step, None, None, 20, {KEY: distance}, "report/x")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


@pytest.fixture
def checkpoint(store: Store) -> Checkpoint:
    tensors = {}
    for group in ("ema", "ema_9"):
        tensors |= {f"{group}.{name}": value for name, value in Network(CONFIG).state_dict().items()}
    about: dict[str, Any] = STATISTICS | {"details": {"averages": {"ema": 0.5, "ema_9": 0.9}}, "held_out_loss": 0.1}
    manifest = CheckpointManifest(step=1, network=asdict(CONFIG), **about)
    return save(store.artifact("training", "emoji", "0" * 12), 1, tensors, {}, manifest)


def measured(store: Store, network: Checkpoint, **sample: Any) -> Plan:
    return Plan(load("emoji", {"store": store.root, "evaluate": {"network": network.uri}, "sample": sample}))


def test_the_arm_that_is_best_over_its_seeds_gives_its_best_point(store: Store, checkpoint: Checkpoint) -> None:
    plan = measured(store, checkpoint)
    points = [point("lucky", 1.0), point("lucky", 9.0, seed=1), point("steady", 3.0, step=2), point("steady", 4.0, 1)]
    assert best_of([(each, plan) for each in points], KEY)[0] == points[2]


def test_the_best_point_has_the_alias_and_is_sampled_in_its_own_way(store: Store, checkpoint: Checkpoint) -> None:
    tracking = Tracking.open(None, store, "emoji")
    few, many = measured(store, checkpoint, steps=3), measured(store, checkpoint, steps=7, ema=0.9)
    with tracking.stage_run("train", None, {}) as run:
        assert run.register("gmem-emoji", checkpoint, store) == 1
    with tracking.experiment_run("sweep", {}) as run:
        points = [(point("3", 5.0), few), (point("7", 4.0), many)]
        assert register(points, KEY, "sweep", run) == register(points, KEY, "sweep", run) == "models:/gmem-emoji/2"
    best = client(tracking.uri).get_model_version_by_alias("gmem-emoji", "best")
    chosen = json.loads(best.tags["chosen"])
    assert int(best.version) == 2 and (chosen["arm"], chosen[KEY], chosen["experiment"]) == ("7", 4.0, "sweep")
    network = open_network("models:/gmem-emoji@best", store)
    ours, _ = load_tensors(network)
    theirs, _ = load_tensors(checkpoint, ["ema_9"])
    assert torch.equal(ours["ema.x_embedder.proj.weight"], theirs["ema_9.x_embedder.proj.weight"])
    recipe = Recipe.model_validate_json((Path(network.uri) / "recipe.json").read_text())
    assert (recipe.sample.steps, recipe.sample.ema) == (7, 0.9)


def test_a_registry_that_does_not_take_it_is_told(store: Store, checkpoint: Checkpoint) -> None:
    class Deaf:
        def register(self, *_: Any, **__: Any) -> None: ...

    with pytest.raises(TrackingError, match=r"did not take .* as a version of gmem-emoji; run the experiment again"):
        register([(point("3", 5.0), measured(store, checkpoint))], KEY, "sweep", Deaf())  # type: ignore[arg-type]
