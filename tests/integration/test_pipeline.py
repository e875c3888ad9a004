"""The whole chain on real pictures, as a user runs it: made once, then continued, then changed, then interrupted."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lancedb
import mlflow
import mlflow.pyfunc
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.checkpoints import all_checkpoints, latest, load
from storage.tables.latents import Latents
from storage.tracking.access import PLACES

from .conftest import GMEM, by_stage, last_json, options

pytestmark = pytest.mark.timeout(900)  # each command starts Ray and Prefect's server anew

Gmem = Callable[..., subprocess.CompletedProcess[str]]


def test_every_stage_makes_its_rows(first: dict[str, dict[str, Any]]) -> None:
    assert all(stage["fresh"] for stage in first.values())
    assert first["ingest"]["rows"] == 40
    assert first["latents"]["rows"] == first["bank"]["rows"] == 80
    assert first["train"]["rows"] == 6
    assert first["evaluate"]["rows"] == 16


def test_manifests_move_with_their_store(first: dict[str, dict[str, Any]]) -> None:
    """Neither an absolute path nor marks for the terminal is in what lasts."""
    root = Path(first["ingest"]["store"])
    manifests = [*root.glob("*/*/manifest.json"), *root.glob("training/*/checkpoints/*/manifest.json")]
    assert len(manifests) > 8
    for manifest in manifests:
        assert "[/]" not in manifest.read_text(), manifest
    naming = {path.name for path in root.rglob("*") if path.is_file() and str(root).encode() in path.read_bytes()}
    # The recipe of a registered model says where its store was, should nothing else tell where it is.
    assert {name for name in naming if not name.startswith("mlflow.db")} <= {"recipe.json"}


def test_mlflow_names_files_in_full_only_where_they_are_corrected(first: dict[str, dict[str, Any]]) -> None:
    """When its database is opened elsewhere."""
    root = first["ingest"]["store"]
    with closing(sqlite3.connect(f"file:{root}/mlflow.db?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(table, row[1]) for table in tables for row in database.execute(f"PRAGMA table_info({table})")]
        naming = {
            (table, column)
            for table, column in columns
            if database.execute(f'SELECT 1 FROM "{table}" WHERE instr("{column}", ?)', [root]).fetchone()
        }
    corrected = {(table, column) for table, columns in PLACES.items() for column in columns}
    assert naming - corrected <= {("params", "value")}, "what a run was told stays as it was told"
    assert {("runs", "artifact_uri"), ("model_versions", "source")} <= naming


def test_each_artifact_is_told_with_its_own_version(first: dict[str, dict[str, Any]]) -> None:
    newest = latest(first["train"]["artifacts"]["training"])
    assert newest is not None and newest.manifest.bank and newest.manifest.patches
    read = {"bank": newest.manifest.bank.version, "patches": newest.manifest.patches.version}
    assert first["bank"]["versions"] == read and first["train"]["versions"] == {"training": 6}
    assert first["ingest"]["versions"] == {}


def test_every_output_has_counts_of_its_own(first: dict[str, dict[str, Any]]) -> None:
    artifacts = first["evaluate"]["artifacts"]
    counts = {kind: json.loads(Path(uri, "manifest.json").read_text())["counts"] for kind, uri in artifacts.items()}
    assert counts["samples"] == counts["report"] == {"rows": 16, "train": 8, "held_out": 8}
    assert counts["statistics"]["rows"] == counts["statistics"]["train"] + counts["statistics"]["held_out"]


def test_unusable_pictures_are_listed_with_path_and_reason(first: dict[str, dict[str, Any]]) -> None:
    index = pq.read_table(f"{first['ingest']['artifacts']['images']}/index.parquet").to_pylist()
    refused = {row["path"].rsplit("/", 1)[-1]: row["reason"] for row in index if not row["kept"]}
    assert set(refused) == {"truncated.png", "empty.png", "text.jpg", "bomb.png"}
    assert all(refused.values())
    assert sum(first["ingest"]["details"]["reasons"].values()) == 4


def test_latents_bank_and_split_agree_by_id(first: dict[str, dict[str, Any]]) -> None:
    latents = Latents.open(first["latents"]["artifacts"]["latents"])
    ids = set(latents.dataset.to_table(columns=["id"])["id"].to_pylist())
    bank = lancedb.connect(first["bank"]["artifacts"]["bank"]).open_table("bank").to_arrow()
    assert set(bank["id"].to_pylist()) == ids == set(range(80))
    assert latents.shape == (12, 8, 8)
    held_out = {row["id"] // 2 for row in bank.select(["id", "split"]).to_pylist() if row["split"] == "held_out"}
    assert 0 < len(held_out) < 40


def test_every_distance_has_its_floor_its_ceiling_and_its_protocol(first: dict[str, dict[str, Any]]) -> None:
    results = json.loads(Path(first["evaluate"]["artifacts"]["report"], "report.json").read_text())
    subjects = {result["subject"].split(",")[0] for result in results if result["metric"] == "fd-emoji-evaluator"}
    assert subjects == {
        f"{what} of {split}" for what in ("samples", "floor", "ceiling") for split in ("train", "held_out")
    }
    # Of eight pictures only the unbiased distance means something.
    kernel = {result["subject"].split(",")[0]: result for result in results if result["metric"] == "kd-emoji-evaluator"}
    for split in ("train", "held_out"):
        assert kernel[f"floor of {split}"]["value"] < kernel[f"ceiling of {split}"]["value"]
    memorised = {result["metric"] for result in results if result["metric"].startswith("memorisation")}
    assert memorised == {
        f"memorisation_{name}-emoji-evaluator" for name in ("ratio", "closer", "copied", "copied_pixels", "from_source")
    }
    assert kernel["samples of train"]["protocol"]["count"] == 8
    assert kernel["samples of train"]["protocol"]["detector"] == "emoji-evaluator"


def test_the_pictures_show_each_source_above_its_sample(first: dict[str, dict[str, Any]]) -> None:
    for path in first["evaluate"]["pictures"].values():
        with Image.open(path) as picture:
            assert picture.height > 128


def test_mlflow_has_a_parent_run_a_child_for_each_stage_and_the_model(
    first: dict[str, dict[str, Any]], store: Path
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("emoji")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert set(children) == {"ingest", "latents", "bank", "train", "evaluate"}
    assert all(run.info.status == "FINISHED" for run in runs)
    train = children["train"]
    assert {"loss/total", "grad_norm", "lr", "images_per_second", "time/data", "time/compute"} <= set(
        train.data.metrics
    )
    inputs = {each.dataset.name: each.dataset.digest for each in train.inputs.dataset_inputs}
    trained_on = latest(first["train"]["artifacts"]["training"])
    assert trained_on is not None
    assert inputs == {
        f"emoji-{kind}": f"{reference.fingerprint}@{reference.version}"
        for kind, reference in (
            ("latents", trained_on.manifest.latents),
            ("bank", trained_on.manifest.bank),
            ("patches", trained_on.manifest.patches),
        )
        if reference
    }
    assert len(client.search_model_versions("name='gmem-emoji'")) == 1
    models = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{train.info.run_id}'")
    kept = all_checkpoints(first["train"]["artifacts"]["training"])
    assert sorted(int(each.tags["step"]) for each in models) == [each.step for each in kept]
    told = {(each.dataset_name, each.dataset_digest) for each in models[0].metrics if each.key == "held_out_loss"}
    assert told == set(inputs.items()), "MLflow shows them as the model's datasets"
    assert any(name.startswith("train/samples/fd-") for name in children["evaluate"].data.metrics)
    (grid,) = (file.path for file in client.list_artifacts(train.info.run_id, "images") if file.path.endswith(".png"))
    assert grid.startswith("images/samples+step+6+"), "MLflow's slider goes by step"


def test_the_registered_network_makes_pictures_for_users_of_mlflow(
    first: dict[str, dict[str, Any]], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/gmem-emoji@best")
    made = model.predict(pd.DataFrame({"class": ["round", "square"]}))["png"]
    sizes = [Image.open(io.BytesIO(png)).size for png in made]
    assert sizes == [(64, 64)] * 2 and made[0] != made[1]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("emoji")
    judged = {each.key for logged in client.search_logged_models([experiment.experiment_id]) for each in logged.metrics}
    assert {f"{split}/samples/fd-emoji-evaluator" for split in ("train", "held_out")} <= judged


def test_a_checkpoint_names_exactly_what_it_was_made_of(first: dict[str, dict[str, Any]], store: Path) -> None:
    newest = latest(first["train"]["artifacts"]["training"])
    assert newest is not None
    made_of = newest.manifest
    assert newest.step == 6
    assert made_of.latents is not None and made_of.bank is not None and made_of.patches is not None
    assert made_of.latents.uri in first["latents"]["artifacts"]["latents"]
    assert made_of.tokenizer["sha256"] and made_of.encoder["sha256"]
    assert len(made_of.latent_mean) == len(made_of.latent_std) == 12


def test_nothing_is_computed_again(ask: Gmem, pictures: Path, store: Path, first: dict[str, dict[str, Any]]) -> None:
    again = by_stage(ask("run", "emoji", "--json", *options(pictures, store)))
    assert not any(stage["fresh"] for stage in again.values())
    assert {name: stage["run_id"] for name, stage in again.items()} == {
        name: stage["run_id"] for name, stage in first.items()
    }


def test_a_stage_that_is_there_is_told_without_a_server(
    ask: Gmem, pictures: Path, store: Path, first: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.warmup.begin", lambda *_: pytest.fail("servers were started"))
    for name, made in first.items():
        found = last_json(ask("stage", name, "emoji", "--json", *options(pictures, store)))
        assert not found["fresh"] and found["artifacts"].keys() == made["artifacts"].keys()
        assert found["run_id"] == made["run_id"]


def test_the_plan_says_what_would_run_and_why(
    ask: Gmem, pictures: Path, store: Path, first: dict[str, dict[str, Any]]
) -> None:
    def plan(*more: str) -> dict[str, str]:
        rows = last_json(ask("plan", "emoji", "--json", *options(pictures, store, *more)))
        return {row["stage"]: row["why"] for row in rows if row["runs"]}

    assert set(plan("encoder.source=shipped:emoji-evaluator")) == {"bank", "train", "evaluate"}
    assert set(plan("train.lr=0.5")) == {"train", "evaluate"}
    assert plan("train.lr=0.5")["train"] == "changed: train.lr 0.003 -> 0.5"
    assert set(plan("data.mirror=false")) == {"latents", "bank", "train", "evaluate"}


def test_status_bank_and_sample_commands(
    ask: Gmem, pictures: Path, store: Path, first: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    near, drawn, mine = tmp_path / "near.png", tmp_path / "drawn.png", options(pictures, store)
    states = last_json(ask("status", "emoji", "--json", *mine))
    assert {row["state"] for row in states if row["stage"] in ("ingest", "latents", "bank")} == {"complete"}
    searched = ask("bank", "search", "emoji", "--row", "4", "-k", "5", "--sheet", str(near), "--json", *mine)
    found = last_json(searched)["rows"]
    assert found[0]["id"] == 4 and len(found) == 5
    assert Image.open(near).width > 0
    sampled = last_json(ask("sample", "emoji", "--id", "4", "--id", "6", "--out", str(drawn), "--json", *mine))
    assert sampled["ids"] == [4, 6] and sampled["calls"] == 3
    assert Image.open(drawn).width > 0


def test_bad_input_gets_one_sentence_and_exit_code_two(
    ask: Gmem, gmem: Gmem, pictures: Path, store: Path, tmp_path: Path, first: dict[str, dict[str, Any]]
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.jpg").write_text("no picture")
    (tmp_path / "file").write_text("")
    for command, arguments in (
        (gmem, ["run", "nonsense"]),
        (ask, ["run", "emoji", "--set", "train.stps=1"]),
        (ask, ["run", "emoji", *options(tmp_path / "missing", tmp_path / "s")]),
        (ask, ["run", "emoji", *options(pictures, tmp_path / "file" / "s")]),
        (gmem, ["stage", "ingest", "emoji", *options(tmp_path / "nothing", tmp_path / "s")]),
        (ask, ["bank", "search", "emoji", "--row", "99999", *options(pictures, store)]),
    ):
        finished = command(*arguments)
        assert finished.returncode == 2, (arguments, finished.stdout, finished.stderr)
        assert "Traceback" not in finished.stderr + finished.stdout, finished.stderr


def test_an_interrupted_training_leaves_a_checkpoint_and_no_process_and_goes_on_exactly(
    ask: Gmem,
    gmem: Gmem,
    pictures: Path,
    store: Path,
    surroundings: dict[str, str],
    first: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    store = shutil.copytree(store, tmp_path / "runs")  # others tell the runs and models of theirs
    slow = options(pictures, store, "train.steps=4000", "train.checkpoint_every=100000", "train.seed=5")
    process = subprocess.Popen(
        [GMEM, "stage", "train", "emoji", *slow],
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    family: set[psutil.Process] = set()
    assert process.stdout is not None
    begun, told = time.monotonic(), list[str]()
    for line in process.stdout:
        told.append(line)
        family |= set(psutil.Process(process.pid).children(recursive=True))
        if "loss" in line or time.monotonic() - begun > 200:
            break
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 130, output
    assert any("starting the training worker" in line for line in told), "nothing is to be seen for a while"
    assert "the same command goes on from there" in output
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    artifacts = last_json(ask("status", "emoji", "--json", *slow))
    training = next(row for row in artifacts if row["kind"] == "training")["uri"]
    stopped = latest(training)
    assert stopped is not None and 0 < stopped.step < 4000
    further = stopped.step + 2
    again = options(pictures, store, f"train.steps={further}", "train.seed=5")
    assert last_json(gmem("stage", "train", "emoji", "--json", *again))["rows"] == further
    assert [c.step for c in all_checkpoints(training)][-1] == further
    tensors, progress = load(all_checkpoints(training)[-1])
    assert progress["learner"]["steps"] == further
    assert all(t.isfinite().all() for t in tensors.values())
