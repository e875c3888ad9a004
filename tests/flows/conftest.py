"""A store with everything a training reads, made of a few random latents, and Ray to train on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.engine.context import Context
from flows.recipe.model import Recipe
from storage.store import Artifact, Store
from storage.tables import bank_rows, latents, patches
from storage.tables.bank_rows import make_rows
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import LatentsWriter
from storage.tables.patches import PatchesWriter
from storage.tracking.tracking import Tracking

SHAPE, DIM, TOKENS, COMPONENTS = (12, 4, 4), 6, 4, 3
PICTURES, HELD_OUT, BATCH = 17, 3, 5
ENCODER = {"name": "vit", "sha256": "ab"}


def recipe(store: str, **train: Any) -> Recipe:
    """5 pictures a step of 14, so that epochs end within batches and no two workers have shares of one size."""
    settings = {
        "steps": 8, "batch": BATCH, "lr": 1e-3, "precision": "fp32", "ema": 0.9, "log_every": 1, "held_out_every": 4,
        "checkpoint_every": 4, "keep": 9,
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "tiny",
            "store": store,
            "data": {"image_size": 32},
            "tokenizer": {"source": "shipped:emoji-tokenizer", "factor": 8, "channels": 12},
            "network": {"size": "T", "patch": 2, "projection_hidden": 16},
            "train": settings | train,
            "sample": {"kind": "ode", "method": "euler", "steps": 2},
            "evaluate": {"encoder": "shipped:emoji-evaluator"},
            "cluster": {"cpus": 3, "object_store_gib": 0.1},
        }
    )


def fill(store: Store) -> dict[str, str]:
    """Latents, bank and patch tokens of 17 pictures and their mirror images, complete; returns their fingerprints."""
    random = np.random.default_rng(0)
    artifacts = {
        kind: store.artifact(kind, "tiny", f"{i:012x}") for i, kind in enumerate(("latents", "bank", "patches"))
    }
    uris = {kind: artifact.uri for kind, artifact in artifacts.items()}
    ids = np.arange(2 * PICTURES)
    splits: list[str | None] = ["held_out" if i >> 1 < HELD_OUT else "train" for i in ids]
    writers = {
        "latents": LatentsWriter(uris["latents"], SHAPE, {"name": "vae"}),
        "bank": BankWriter(uris["bank"], DIM, ENCODER),
        "patches": PatchesWriter(uris["patches"], TOKENS, torch.eye(COMPONENTS, 7), torch.ones(7), ENCODER),
    }
    values, snippets = random.normal(size=(len(ids), *SHAPE)), random.normal(size=(len(ids), DIM))
    tokens = random.normal(size=(len(ids), TOKENS, COMPONENTS))
    rows = make_rows(ids, snippets, "dataset", splits=splits, shard="a")
    writers["latents"].commit([latents.write_fragments(uris["latents"], "a", ids, [0] * len(ids), values)])
    writers["bank"].commit([bank_rows.write_fragments(uris["bank"], "a", rows)])
    writers["patches"].commit([patches.write_fragments(uris["patches"], "a", ids, tokens)])
    versions = {
        "latents": writers["latents"].finish_latents(ids).version,
        "bank": writers["bank"].finish_bank(ids).version,
        "patches": patches.Patches.open(uris["patches"]).version,
    }
    for kind, artifact in artifacts.items():
        with artifact.lease("test") as lease:
            artifact.commit(artifact.describe(lease, details={"version": versions[kind]}))
    return {kind: artifact.fingerprint for kind, artifact in artifacts.items()}


class Trainings:
    """Trainings on one store, each with an artifact, a lease and a run in MLflow of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.store, self.stack, self.count = Store(str(folder)), stack, 0
        self.fingerprints = fill(self.store)
        self.tracking = Tracking.open(f"sqlite:///{folder}/mlflow.db", self.store, "tiny")

    def job(self, training: Artifact | None = None, **train: Any) -> Context:
        """A new training, or a further attempt at one."""
        self.count += training is None
        artifact = training or self.store.artifact("training", "tiny", f"{self.count + 100:012x}")
        held = artifact.holder()
        number = held.number if held else self.stack.enter_context(artifact.lease("test")).number
        run = self.stack.enter_context(self.tracking.stage_run("train", None, {}, artifact.folder))
        return Context(
            recipe=recipe(self.store.root, **train),
            fingerprints=self.fingerprints | {"training": artifact.fingerprint},
            leases={"training": number},
            tracking_uri=self.tracking.uri,
            run_id=run.id,
        )


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with ExitStack() as stack:
        yield Trainings(tmp_path_factory.mktemp("trainings"), stack)


@pytest.fixture(scope="module")
def a_ray() -> Iterator[None]:
    """An embedded Ray with three CPUs, which is more than it needs to find. It ends with a module: others want another."""
    from flows.cluster.connection import connected
    from flows.recipe.model import Cluster

    with connected(Cluster(cpus=3, object_store_gib=0.1)):
        yield


Make = Callable[..., Context]
