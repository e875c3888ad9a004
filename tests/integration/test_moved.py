"""A store that is somewhere else by now, while a file stands where it was: everything goes on in the new place."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pandas as pd
import pytest
from PIL import Image

from storage.checkpoints import latest
from storage.tracking.access import client

from .conftest import by_stage, options

pytestmark = pytest.mark.timeout(900)

Gmem = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def moved(store: Path, first: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the first run's store is now. Other tests get theirs back, as it was."""
    place = tmp_path_factory.mktemp("another place") / "kept"
    shutil.copytree(store, place)
    aside = store.rename(store.with_name("aside"))
    store.write_text("no folder")
    yield place
    assert store.read_text() == "no folder", "somebody wrote to where it was"
    store.unlink()
    aside.rename(store)


def test_nothing_is_computed_again_and_all_is_found_in_the_new_place(
    ask: Gmem, pictures: Path, store: Path, moved: Path, first: dict[str, dict[str, Any]]
) -> None:
    told = ask("run", "emoji", "--json", *options(pictures, moved))
    again = by_stage(told)
    assert not any(stage["fresh"] for stage in again.values())
    assert {name: stage["run_id"] for name, stage in again.items()} == {n: s["run_id"] for n, s in first.items()}
    places = [*again["train"]["artifacts"].values(), *again["evaluate"]["pictures"].values()]
    assert all(uri.startswith(f"{moved}/") and Path(uri).exists() for uri in places)
    assert str(store) not in told.stdout + told.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("status", "emoji"),
        ("bank", "search", "emoji", "--row", "4"),
        ("sample", "emoji", "--id", "4", "--out", "drawn.png"),
        ("sample", "emoji", "--network", "models:/gmem-emoji@best", "--id", "4", "--out", "best.png"),
        ("store", "usage"),
        ("store", "clean", "--yes", "--keep", "1"),
    ],
    ids=lambda words: " ".join(words[:2]) + (" by MLflow" if "--network" in words else ""),
)
def test_commands_know_the_new_place_alone(
    ask: Gmem, pictures: Path, store: Path, moved: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(moved.parent)
    done = ask(*command, *(("--store", str(moved)) if command[0] == "store" else options(pictures, moved)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(store) not in done.stdout + done.stderr
    assert "--out" not in command or Image.open(command[command.index("--out") + 1]).width > 0


def test_training_goes_on_there_and_mlflow_has_files_of_before_and_after(
    gmem: Gmem, pictures: Path, store: Path, moved: Path, first: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    further = by_stage(gmem("run", "emoji", "--json", *options(pictures, moved, "train.steps=9")))
    assert [name for name, stage in further.items() if stage["fresh"]] == ["train", "evaluate"]
    newest = latest(further["train"]["artifacts"]["training"])
    assert newest is not None and newest.step == 9 and newest.uri.startswith(f"{moved}/")
    tracking = client(f"sqlite:///{moved}/mlflow.db")
    for run in (first["evaluate"]["run_id"], further["evaluate"]["run_id"]):
        assert Image.open(tracking.download_artifacts(run, "pairs-train.png", str(tmp_path))).width > 0
    naming = {path.name for path in moved.rglob("*") if path.is_file() and str(store).encode() in path.read_bytes()}
    # The recipe of a registered model says where its store was, and MLflow what its runs were told.
    assert {name for name in naming if not name.startswith("mlflow.db")} <= {"recipe.json"}


def test_a_registered_network_is_loaded_from_the_new_place(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{moved}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/gmem-emoji/1")
    (png,) = model.predict(pd.DataFrame({"class": ["round"]}))["png"]
    assert Image.open(io.BytesIO(png)).size == (64, 64)
