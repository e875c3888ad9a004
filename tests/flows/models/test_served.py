"""A registered network as MLflow's users load it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import mlflow
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows.engine.errors import StageError
from flows.models.resolve import open_network
from flows.models.served import save
from flows.recipe.files import load
from gmem.settings import NetworkConfig
from storage.checkpoints import CheckpointManifest
from storage.checkpoints import save as save_checkpoint
from storage.store import Store
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tracking.access import client
from storage.tracking.tracking import Tracking

from .test_generation import CONFIG, STATISTICS

DIM = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A bank of four pictures, and two versions of a registered network that was trained on it."""
    from dataclasses import asdict

    from gmem.network import Network

    store = Store(str(tmp_path_factory.mktemp("store")))
    bank = store.artifact("bank", "emoji", "0" * 12)
    writer = BankWriter(bank.uri, DIM, {"name": "vit", "sha256": "ab"})
    snippets = np.random.default_rng(0).normal(size=(4, DIM))
    rows = make_rows(np.arange(0, 8, 2), snippets, "dataset", classes=["flags", "food", None, "food"], shard="a")
    writer.commit([write_fragments(bank.uri, "a", rows)])
    version = writer.finish_bank(np.arange(0, 8, 2)).version
    with bank.lease("test") as lease:
        bank.commit(bank.describe(lease, details={"version": version}))
    training = store.artifact("training", "emoji", "1" * 12)
    recipe = load("emoji", {"store": store.root, "sample": {"steps": 3}})
    tracking = Tracking.open(None, store, "emoji")
    with tracking.stage_run("train", None, {}) as run:
        for step, loss in ((2, 0.5), (4, 0.7)):
            torch.manual_seed(step)
            tensors = {
                f"ema.{name}": value for name, value in Network(NetworkConfig(**asdict(CONFIG))).state_dict().items()
            }
            about = CheckpointManifest(
                step=step, network=asdict(CONFIG), bank=bank.reference(version), held_out_loss=loss, **STATISTICS
            )
            checkpoint = save_checkpoint(training, step, tensors, {}, about)
            small = 1 << 30 if step == 2 else 0  # the second one's weights stay where they are
            made = run.register(
                "gmem-emoji", checkpoint, store, lambda folder, target: save(folder, target, recipe), small
            )
            assert made == step // 2
    with patch.dict(os.environ):  # set_tracking_uri sets MLFLOW_TRACKING_URI, which other tests would follow
        ask_mlflow_of(store)
        yield store


def ask_mlflow_of(store: Store) -> None:
    for use in (mlflow.set_tracking_uri, mlflow.set_registry_uri):
        use(f"sqlite:///{store.root}/mlflow.db")


def shown(answer: pd.DataFrame) -> list[np.ndarray]:
    pictures = [np.asarray(Image.open(io.BytesIO(png)), np.int16) for png in answer["png"]]
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    return pictures


def same(picture: np.ndarray, other: np.ndarray) -> bool:
    """But for what rounding does in batches of another size."""
    return bool(np.abs(picture - other).max() <= 2)


def test_ids_classes_and_snippets_become_pictures(store: Store) -> None:
    model = mlflow.pyfunc.load_model("models:/gmem-emoji/1")
    first, second = shown(model.predict(pd.DataFrame({"id": [0, 2]})))
    assert not same(first, second)
    (flag,) = shown(model.predict(pd.DataFrame({"class": ["flags"]})))
    assert same(flag, first)  # the only one, by the same noise
    snippet = np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float16).astype(np.float32)[0]
    assert same(shown(model.predict(pd.DataFrame({"snippet": [snippet.tolist()]})))[0], first)
    mixed = pd.DataFrame({"id": pd.array([0, None], "Int64"), "class": [None, "food"]})
    assert same(shown(model.unwrap_python_model().predict(None, mixed))[0], first)
    for wrong, words in (
        (pd.DataFrame({"id": [99]}), "99"),
        (pd.DataFrame({"class": ["x' OR 'a' = 'a"]}), "no such rows"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(wrong)
    with pytest.raises(ValueError, match="give one of id, class, snippet"):
        model.predict(pd.DataFrame({"id": [0], "class": ["food"]}))


def test_nothing_is_pickled_and_large_weights_stay_where_they_are(store: Store, tmp_path: Path) -> None:
    for version, weights in ((1, True), (2, False)):
        folder = Path(
            mlflow.artifacts.download_artifacts(f"models:/gmem-emoji/{version}", dst_path=str(tmp_path / str(version)))
        )
        files = {path.name for path in folder.rglob("*") if path.is_file()}
        assert "MLmodel" in files and ("ema.safetensors" in files) == weights
        assert not {name for name in files if name.endswith((".pkl", ".pth", ".bin"))}
    assert shown(mlflow.pyfunc.load_model("models:/gmem-emoji/2").predict(pd.DataFrame({"id": [0]})))


def test_an_example_of_what_it_takes_comes_with_it(store: Store) -> None:
    model = mlflow.pyfunc.load_model("models:/gmem-emoji/1")
    example = model.input_example
    assert isinstance(example, pd.DataFrame) and len(shown(model.predict(example))) == 2
    assert set(example["id"]) < {0, 2, 4, 6}
    about = mlflow.models.get_model_info("models:/gmem-emoji/2")
    assert about.saved_input_example_info and about.signature


def test_the_best_network_has_an_alias_and_can_be_named_anywhere(store: Store) -> None:
    assert (
        client(Tracking.open(None, store, "").uri).get_model_version_by_alias("gmem-emoji", "best").tags["step"] == "2"
    )
    assert open_network("models:/gmem-emoji@best", store).step == 2
    assert open_network("models:/gmem-emoji@latest", store).step == 4
    assert open_network("models:/gmem-emoji/2", store).step == 4
    for absent in ("models:/gmem-emoji/9", "models:/gmem-emoji@worst", "models:/none/1", "models:/x"):
        with pytest.raises(ValueError, match="no registered network"):
            open_network(absent, store)


@pytest.fixture
def moved(store: Store, tmp_path: Path) -> Iterator[Store]:
    """A copy of the store under another name, which MLflow is asked about; what the first said is not there for it."""
    copy, hidden = Store(str(tmp_path / "copy's")), Path(f"{store.root} hidden")
    shutil.copytree(store.root, copy.root)
    Path(store.root).rename(hidden)
    try:
        ask_mlflow_of(copy)
        client(mlflow.get_tracking_uri())  # which sees that it was moved
        yield copy
    finally:
        hidden.rename(store.root)
        ask_mlflow_of(store)


def test_models_of_a_store_that_was_moved_read_what_is_there(moved: Store) -> None:
    for version in (1, 2):
        assert open_network(f"models:/gmem-emoji/{version}", moved).uri.startswith(f"{moved.root}/")
        model = mlflow.pyfunc.load_model(f"models:/gmem-emoji/{version}")
        assert shown(model.predict(pd.DataFrame({"id": [2]})))
        assert model.unwrap_python_model().recipe.store == moved.root
        about = client(Tracking.open(None, moved, "").uri).get_model_version("gmem-emoji", str(version))
        assert about.tags["checkpoint"] == f"training/emoji-{'1' * 12}/checkpoints/step-{2 * version:08d}"


def test_a_model_that_is_taken_away_from_its_store_is_told_where_that_is(moved: Store, tmp_path: Path) -> None:
    uri, rows = "models:/gmem-emoji/{}", pd.DataFrame({"id": [2]})
    away = [
        mlflow.artifacts.download_artifacts(uri.format(version), dst_path=str(tmp_path / str(version)))
        for version in (1, 2)
    ]
    with pytest.raises(StageError, match=r"load the model with model_config=\{'store': …\}"):
        mlflow.pyfunc.load_model(away[0]).predict(rows)
    with pytest.raises(StageError, match=r"load the model with model_config=\{'store': …\}"):
        mlflow.pyfunc.load_model(away[1])
    for path in away:
        assert shown(mlflow.pyfunc.load_model(path, model_config={"store": moved.root}).predict(rows))
