"""A recipe that keeps few snippets of its bank, each in few numbers: trained, sampled, edited and continued as ever."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.checkpoints import latest
from storage.samples import read_samples
from storage.store import Store
from storage.tables.memory import read_memory

from .conftest import by_stage, last_json, options

pytestmark = pytest.mark.timeout(900)

Gmem = Callable[..., subprocess.CompletedProcess[str]]
KEPT, RANK = 5, 8
SETTINGS = [f"bank.snippets={KEPT}", "bank.choice=balanced", f"bank.rank={RANK}"]


class Home:
    """A store and the commands on it."""

    def __init__(self, gmem: Gmem, pictures: Path, store: Path) -> None:
        self.gmem, self.store, self.pictures = gmem, Store(str(store)), pictures
        self.options = options(pictures, store, *SETTINGS)

    def run(self, *more: str) -> dict[str, dict[str, Any]]:
        return by_stage(self.gmem("run", "emoji", "--json", *options(self.pictures, Path(self.store.root), *more)))

    def kept(self) -> set[int]:
        (artifact,) = self.store.artifacts("memory")
        return set(read_memory(artifact.uri).kept.tolist())


@pytest.fixture(scope="module")
def made(gmem: Gmem, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory") / "runs"


@pytest.fixture(scope="module")
def first(gmem: Gmem, pictures: Path, made: Path) -> dict[str, dict[str, Any]]:
    return Home(gmem, pictures, made).run(*SETTINGS)


@pytest.fixture
def home(gmem: Gmem, pictures: Path, made: Path, first: dict[str, dict[str, Any]], tmp_path: Path) -> Home:
    """A test's own copy of what was made."""
    return Home(gmem, pictures, shutil.copytree(made, tmp_path / "runs"))


def test_training_and_report_rest_on_what_is_kept(home: Home, first: dict[str, dict[str, Any]]) -> None:
    (memory,), (training,) = home.store.artifacts("memory"), home.store.artifacts("training")
    pictures = len(read_memory(memory.uri).pictures)
    assert first["bank"]["about"] == f"{KEPT} of {pictures} snippets kept in {RANK} numbers each"
    assert len(home.kept()) == KEPT
    manifest, checkpoint = training.manifest(), latest(training)
    assert manifest is not None and checkpoint is not None
    assert manifest.inputs["memory"].fingerprint == memory.fingerprint and manifest.inputs["bank"].version
    assert checkpoint.manifest.details["memory"] == memory.folder
    (samples,) = home.store.artifacts("samples")
    drawn = [row.snippet for row in read_samples(home.store, samples.path("train-000000.tar"))]
    assert len(drawn) == 8 and {row // 2 for row in drawn} == home.kept(), "all of them come, some twice"
    floor = first["evaluate"]["details"]["metrics"]["train/floor/fd-emoji-evaluator"]
    assert floor > 0, "of as many pictures as there are samples"


def test_samples_are_of_what_is_kept_and_a_withdrawn_one_conditions_nobody(
    home: Home, first: dict[str, dict[str, Any]], ask: Gmem, tmp_path: Path
) -> None:
    out = ("--json", "--out", str(tmp_path / "samples.png"))
    drawn = last_json(ask("sample", "emoji", "-n", "12", *out, *home.options))["ids"]
    assert len(drawn) == 12 and {row // 2 for row in drawn} == home.kept()

    (training,) = home.store.artifacts("training")
    manifest, gone = training.manifest(), drawn[0]
    assert manifest is not None
    before = manifest.inputs["bank"].version
    done = ask("bank", "withdraw", "emoji", "--ids", str(gone), "--reason", "asked for", *home.options)
    assert done.returncode == 0, done.stderr
    again = last_json(ask("sample", "emoji", "-n", "12", *out, *home.options))["ids"]
    assert {row // 2 for row in again} == home.kept() - {gone // 2}

    # The training goes on with the version of the bank, and so with the snippets, that it began with.
    more = home.run(*SETTINGS, "train.steps=8")
    assert not more["bank"]["fresh"] and more["train"]["fresh"] and more["train"]["rows"] == 8
    (training,) = home.store.artifacts("training")
    manifest = training.manifest()
    assert manifest is not None and manifest.inputs["bank"].version == before
