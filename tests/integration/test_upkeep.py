"""The bank's flows as a deployment runs them: a real Prefect server, LanceDB, MLflow, and pictures from elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.commands.options import overrides
from storage.tables.bank import Bank
from storage.tracking.access import client

from .conftest import SMALL, options

Gmem = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
import json, sys
from flows.upkeep import bank_add, bank_optimise, bank_withdraw

overrides = json.loads(sys.argv[1])
added = bank_add(sys.argv[2], "more", overrides=overrides, reason="a test")
again = bank_add(sys.argv[2], "more", overrides=overrides)
gone = bank_withdraw("no more", near=str(added["ids"][0]), similarity=0.999, purge=True, overrides=overrides)
after = bank_add(sys.argv[2], "more", overrides=overrides)
kept = bank_optimise(overrides=overrides)
print(json.dumps([added, again, gone, after, kept]))
"""


@pytest.fixture(scope="module")
def made(gmem: Gmem, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `store` has images and a bank."""
    folder = tmp_path_factory.mktemp("upkeep")
    for stage in ("ingest", "bank"):
        done = gmem("stage", stage, "emoji", *options(pictures, Path("store")), cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A test's own copy of it."""
    return shutil.copytree(made, tmp_path / "upkeep")


def test_pictures_come_and_go_and_the_bank_is_kept_in_order(
    folder: Path, pictures: Path, tmp_path: Path, surroundings: dict[str, str]
) -> None:
    chosen = overrides([*SMALL, f"data.source={pictures}", "data.max_pixels=100000000"], "store")
    command = [sys.executable, "-c", PROGRAM, json.dumps(chosen), str(_others(tmp_path))]
    done = subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    added, again, gone, after, kept = json.loads(done.stdout.splitlines()[-1])
    assert len(added["ids"]) == 2 and not added["unusable"]
    assert not again["ids"] and len(again["duplicates"]) == 2
    assert gone["asked"] == added["ids"][:1] and gone["purged"]["versions"] > 0 and gone["neighbours"]
    assert not after["ids"] and len(after["withdrawn"]) == 1
    assert kept["search"] is None and kept["index"] is None and kept["fragments"] > 0
    assert kept["version"] > gone["version"] > added["version"]

    mlflow = client(f"sqlite:///{folder}/store/mlflow.db")
    experiment = mlflow.get_experiment_by_name("emoji")
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id], "tags.`gmem.kind` = 'bank'")
    assert sorted(run.info.run_name for run in runs) == ["bank-add"] * 3 + ["bank-optimise", "bank-withdraw"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert max(run.data.metrics.get("added", 0) for run in runs) == 2


def test_no_rerun_of_ingest_and_bank_brings_back_what_was_withdrawn(
    gmem: Gmem, folder: Path, pictures: Path, tmp_path: Path
) -> None:
    def said(source: Path, *words: str) -> dict[str, Any]:
        done = gmem(*words, *options(source, Path("store")), "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    gone = said(pictures, "bank", "withdraw", "emoji", "--where", "key = 'square/deep/04'", "--reason", "asked for")
    assert len(gone["asked"]) == 2
    (images, *_) = gone["pictures"]
    assert images.startswith("images/"), "where the picture itself is"
    (manifest,) = (folder / "store" / "bank").glob("emoji-*/manifest.json")
    manifest.unlink()
    said(pictures, "stage", "bank", "emoji")
    kept = Bank(str(manifest.parent))
    assert len(kept) == gone["rows"]

    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    (file,) = (more / "square" / "deep").glob("04.*")
    file.rename(file.with_stem("renamed"))
    Image.new("RGB", (70, 70), "teal").save(more / "square" / "deep" / "teal.png")
    for stage in ("ingest", "bank"):
        said(more, "stage", stage, "emoji")
    (later,) = {*(folder / "store" / "bank").glob("emoji-*")} - {manifest.parent}
    keys = set(Bank(str(later)).scan(["key"])["key"].to_pylist())
    assert "square/deep/teal" in keys and not keys & {"square/deep/04", "square/deep/renamed"}
    assert keys == {*kept.scan(["key"], "origin = 'dataset'")["key"].to_pylist(), "square/deep/teal"}


def _others(folder: Path) -> Path:
    source = folder / "others"
    source.mkdir()
    for name, colour in (("a", (250, 10, 90)), ("b", (5, 200, 30))):
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste(colour, (4, 8, 20, 28))
        picture.save(source / f"{name}.png")
    return source
