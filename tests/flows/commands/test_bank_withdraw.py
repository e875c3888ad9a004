"""`gmem bank withdraw` on a store with a training, a registered model, samples and a report of the bank's rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Plan
from flows.explore import open_bank
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK, pinned
from flows.upkeep import tracking_of
from gmem.network import Network, NetworkConfig
from storage import checkpoints
from storage.checkpoints import CheckpointManifest
from storage.manifest import Input
from storage.samples import SampleRow, write_samples
from storage.store import Artifact, Store
from storage.tracking.access import client

from .conftest import PICTURES, answered, picture, refused, run

TRAINING = "a" * 12


def finish(artifact: Artifact, inputs: dict[str, Input]) -> None:
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease, inputs=inputs))


@pytest.fixture
def used(recipe: Recipe) -> dict[str, str]:
    """Folders of what was made with the bank: by kind."""
    store, bank = Store(recipe.store), open_bank(recipe)
    version = bank.tag(f"training-{TRAINING}")
    of_bank = Plan(recipe).artifact(BANK).reference(version)

    training = store.artifact("training", "emoji", TRAINING)
    about = CheckpointManifest(step=3, network={}, bank=of_bank)
    saved = checkpoints.save(training, 3, {"ema.a": torch.ones(4)}, {}, about)
    with tracking_of(recipe).stage_run("train", None, {}) as registering:
        assert registering.register("gmem-emoji", saved, store) == 1
    finish(training, {"bank": of_bank})

    samples = store.artifact("samples", "emoji", "b" * 12)
    image = np.zeros((8, 8, 3), np.uint8)
    rows = [SampleRow(number, snippet, image, 4) for number, snippet in enumerate((0, 2, 4, 2, 3))]
    rows.append(SampleRow(5, 6, image, 4, mixed_with=2))
    write_samples(store, samples.path("train-000000.tar"), rows, 0)
    finish(samples, {"training": training.reference(3), "bank": of_bank})

    report = store.artifact("report", "emoji", "c" * 12)
    finish(report, {"samples": samples.reference()})
    return {each.kind: each.folder for each in (training, samples, report)}


def test_what_knew_the_rows_is_told(recipe: Recipe, used: dict[str, str]) -> None:
    version = open_bank(recipe).version
    told = answered(recipe, "bank", "withdraw", "--ids", "2", "--reason", "asked for")
    assert (told["asked"], told["mirrored"], told["rows"]) == ([2], [3], 10)
    assert told["trained"] == [{"artifact": used["training"], "kind": "training", "version": version, "held": 2}]
    assert [(m["name"], m["version"], m["bank_version"]) for m in told["models"]] == [("gmem-emoji", "1", str(version))]
    assert told["samples"] == [{"artifact": used["samples"], "samples": [1, 3, 4, 5]}]
    assert told["reports"] == [used["report"]]
    near = told["neighbours"]
    assert {row["withdrawn"] for row in near} == {2} and {row["key"] for row in near} == {"food/1"}
    assert not {row["nearest"] for row in near} & {2, 3}
    similarity = [row["similarity"] for row in near]
    assert similarity == sorted(similarity, reverse=True) and -1 <= similarity[-1] <= similarity[0] < 1
    assert {row["generated"] for row in near} == {None}

    mlflow = client(f"sqlite:///{recipe.store}/mlflow.db")
    (experiment,) = [e for e in mlflow.search_experiments() if e.name == "emoji"]
    (kept,) = mlflow.search_runs([experiment.experiment_id], "tags.`gmem.kind` = 'bank'")
    assert kept.info.run_name == "bank-withdraw" and kept.data.params["reason"] == "asked for"
    assert kept.data.metrics["asked"] == 1
    assert kept.data.metrics["nearest/similarity"] == pytest.approx(similarity[0])
    names = {Path(file.path).name for file in mlflow.list_artifacts(kept.info.run_id)}
    assert {"withdrawal.json", "rests on withdrawn rows.json", "nearest that remain.json"} <= names

    later = run(recipe, "bank", "withdraw", "--ids", "4", "--reason", "too").stdout
    assert used["training"] in later and "models:/gmem-emoji/1" in later and "1 samples drawn from them: 2" in later
    assert "flags/2" in later and "until --purge removes those" in later


def test_rows_that_never_were_in_a_version_rest_on_nothing(recipe: Recipe, used: dict[str, str]) -> None:
    made = answered(recipe, "bank", "mix", "--ids", "6,8")["id"]
    told = answered(recipe, "bank", "withdraw", "--ids", str(made), "--reason", "a whim")
    assert (told["trained"], told["models"], told["samples"], told["reports"]) == ([], [], [], [])


def test_banks_made_of_it_that_have_the_rows_still_are_told(recipe: Recipe) -> None:
    reduced = answered(recipe, "bank", "factorise", "--rank", "8")["uri"]
    told = answered(recipe, "bank", "withdraw", "--ids", "2", "--reason", "asked for")
    assert told["banks"] == {Store(recipe.store).relative(reduced): 2}
    assert answered(recipe, "bank", "withdraw", "--ids", "2", "--reason", "too", "--bank", reduced)["rows"] == 10
    assert "has 2 of the rows still" in run(recipe, "bank", "withdraw", "--ids", "4", "--reason", "x").stdout


def test_all_near_to_a_picture_go(recipe: Recipe, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "mine.png")
    far = refused(recipe, "bank", "withdraw", "--near", str(picture_of_nobody(tmp_path)), "--similarity", "1",
                  "--reason", "x")  # fmt: skip
    assert "no row is as near as 1 to" in far and "nothing was withdrawn" in far
    told = answered(recipe, "bank", "withdraw", "--near", str(tmp_path / "mine.png"), "--similarity", "0.9999",
                    "--reason", "asked for")  # fmt: skip
    assert (told["asked"], told["mirrored"]) == ([2], [3])
    told = answered(recipe, "bank", "withdraw", "--near", "8", "--similarity", "0.9999", "--reason", "this too")
    assert 8 in told["asked"] and len(open_bank(recipe)) == 2 * PICTURES - 4
    everything = refused(recipe, "bank", "withdraw", "--near", "0", "--similarity", "1e-9", "--reason", "x")
    assert "all 8 rows" in everything


def picture_of_nobody(folder: Path) -> Path:
    Image.fromarray(picture(77)).save(folder / "other.png")
    return folder / "other.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--near", "2", "--ids", "2"], "one of them"),
        (["--near", "2", "--similarity", "0"], "a similarity of 0 is none"),
        (["--near", "2", "--similarity", "nan"], "a similarity of nan is none"),
        (["--near", "99"], "no row 99"),
        (["--near", "nowhere.png"], "not a file"),
        (["--ids", "2", "--measure"], "has no checkpoint"),
        (["--ids", "2", "--purge"], "give --yes"),
        (["--ids", "2", "--purge", "--json"], "give --yes"),
        (["--ids", "2", "--where", "id = 2", "--purge", "--yes"], "one of them"),
        (["--where", "class = 'nobody'", "--purge", "--yes"], "no row fits"),
    ],
)
def test_what_cannot_be_done_changes_nothing(recipe: Recipe, arguments: list[str], words: str) -> None:
    bank = open_bank(recipe)
    assert words in refused(recipe, "bank", "withdraw", "--reason", "x", *arguments)
    assert len(open_bank(recipe).history()) == 1 and len(bank.dataset.versions()) == bank.version


def test_a_purge_says_what_it_costs_and_is_for_good(recipe: Recipe, used: dict[str, str]) -> None:
    bank = open_bank(recipe)
    version, thumbnail = bank.version, bank.rows([2], ["thumbnail"])["thumbnail"][0].as_py()
    answered(recipe, "bank", "withdraw", "--ids", "2", "--reason", "asked for")
    told = answered(recipe, "bank", "withdraw", "--purge", "--yes", "--reason", "as the law asks")
    assert told["asked"] == [] and told["rows"] == 10
    lost = {each["artifact"]: each["versions"] for each in told["purged"]["lost"]}
    assert lost == {used["training"]: [version], used["samples"]: [version]}
    assert told["purged"]["versions"] > 1 and told["purged"]["tags"] == [f"training-{TRAINING}"]
    files = [path.read_bytes() for path in Path(bank.artifact).rglob("*") if path.is_file()]
    assert not any(thumbnail in data for data in files)

    assert "was purged on" in refused(recipe, "bank", "info", "--at", str(version))
    assert "was purged on" in refused(recipe, "bank", "restore", str(version))
    (change,) = answered(recipe, "bank", "history")["changes"]
    assert (change["kind"], change["reason"], change["rows"]) == ("purge", "as the law asks", 10)
    context = SimpleNamespace(artifact=_artifacts(recipe), fingerprints={"training": TRAINING, "prior": "d" * 12})
    with pytest.raises(StageError, match=rf"was begun with version {version} of the bank, which was purged"):
        pinned(cast(Context, context), "training")
    assert pinned(cast(Context, context), "prior")["bank"] == open_bank(recipe).version
    again = run(recipe, "bank", "withdraw", "--ids", "4", "--purge", "--yes", "--reason", "this too").stdout
    assert "purged: " in again and used["training"] in again


def _artifacts(recipe: Recipe) -> Any:
    store = Store(recipe.store)
    there = {"bank": Plan(recipe).artifact(BANK), "training": store.artifact("training", "emoji", TRAINING)}
    return lambda kind: there.get(kind) or store.artifact(kind, "emoji", "d" * 12)


def test_how_near_what_is_generated_comes(recipe: Recipe, encoder: Any, tmp_path: Path) -> None:
    from flows.exchange.importing import import_network

    torch.manual_seed(0)
    shape: dict[str, Any] = {"latent_channels": 12, "latent_size": 8, "snippet_dim": encoder.dim}
    torch.save(Network(NetworkConfig.of("T", **shape)).state_dict(), tmp_path / "small.pt")
    torch.save({"mean": torch.zeros(12), "std": torch.ones(12)}, tmp_path / "stats.pt")
    network = import_network(tmp_path / "small.pt", Store(recipe.store), latent_stats=str(tmp_path / "stats.pt"))
    told = answered(recipe, "bank", "withdraw", "--ids", "2", "--reason", "x", "--measure", "--network", network.uri,
                    "--set", "sample.steps=2")  # fmt: skip
    generated = [row["generated"] for row in told["neighbours"]]
    assert len(generated) == 4 and all(-1 <= value < 1 for value in generated)
    mlflow = client(f"sqlite:///{recipe.store}/mlflow.db")
    (experiment,) = [e for e in mlflow.search_experiments() if e.name == "emoji"]
    (kept,) = mlflow.search_runs([experiment.experiment_id], "tags.`gmem.kind` = 'bank'")
    assert kept.data.metrics["nearest/generated"] == pytest.approx(max(generated))
    path = mlflow.download_artifacts(kept.info.run_id, "withdrawal.json", str(tmp_path))
    assert json.loads(Path(path).read_text())["neighbours"] == told["neighbours"]
