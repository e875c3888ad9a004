"""Logged models of checkpoints and versions of a registered model, in the real MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.tracking import MlflowClient

from storage import checkpoints
from storage.checkpoints import Checkpoint, CheckpointManifest
from storage.retention.checkpoints import prune
from storage.store import Input, Store
from storage.tracking.access import client
from storage.tracking.models import Data
from storage.tracking.run import Run
from storage.tracking.tracking import Tracking

LATENTS = Input(uri="latents/emoji-0123456789ab", fingerprint="0123456789ab", version=4)
BANK = Input(uri="bank/emoji-ba9876543210", fingerprint="ba9876543210", version=9)
DATA = {("emoji-latents", "0123456789ab@4"), ("emoji-bank", "ba9876543210@9")}
"""Of a checkpoint that was trained on these two, as MLflow names them."""


def saved(folder: Path, run: Run, step: int, loss: float | None) -> Checkpoint:
    about = CheckpointManifest(step=step, network={}, latents=LATENTS, bank=BANK, held_out_loss=loss, mlflow_run=run.id)
    return checkpoints.save(str(folder), step, {"ema.a": torch.full((3,), float(step))}, {}, about)


def points_of(logged: LoggedModel) -> list[Metric]:
    return logged.metrics or []


def outputs_of(mlflow: MlflowClient, run: Run) -> list[LoggedModelOutput]:
    outputs = mlflow.get_run(run.id).outputs
    return outputs.model_outputs if outputs else []


def models_of(tracking: Tracking, run: Run) -> dict[str, LoggedModel]:
    """The run's logged models by name."""
    mlflow = client(tracking.uri)
    experiment = mlflow.get_run(run.id).info.experiment_id
    return {each.name: each for each in mlflow.search_logged_models([experiment], f"source_run_id = '{run.id}'")}


def test_each_kept_checkpoint_is_a_logged_model_with_its_loss_and_what_it_was_trained_on(
    tracking: Tracking, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    with tracking.stage_run("train", None, {}) as run:
        for step, loss in ((10, 0.5), (20, 0.3), (30, 0.4), (40, None)):
            saved(tmp_path, run, step, loss)
            prune(str(tmp_path), keep=2)
            run.keep("gmem-kept", checkpoints.all_checkpoints(str(tmp_path)), store)
    there = models_of(tracking, run)
    assert set(there) == {f"gmem-kept-step-{step}" for step in (20, 30, 40)}, "of what is pruned none is left"
    best = there["gmem-kept-step-20"]
    assert {(each.key, each.value, each.step) for each in points_of(best)} == {("held_out_loss", 0.3, 20)}
    assert {(each.dataset_name, each.dataset_digest) for each in points_of(best)} == DATA
    assert best.tags["mlflow.note.content"] == (
        "Averaged weights at step 20, held-out loss 0.3: `--network checkpoints/step-00000020`\n\n"
        "Trained on `latents/emoji-0123456789ab`, version 4 and `bank/emoji-ba9876543210`, version 9."
    )
    assert best.tags["checkpoint"] == "checkpoints/step-00000020" and best.status == "READY"
    assert not points_of(there["gmem-kept-step-40"]), "nothing was measured of it"
    mlflow = client(tracking.uri)
    assert not mlflow.list_logged_model_artifacts(best.model_id), "its weights are where they were"
    made = {(each.model_id, each.step) for each in outputs_of(mlflow, run)}
    assert (best.model_id, 20) in made

    # What is registered of them in the end is the same logged model, with its files.
    with tracking.stage_run("train", None, {}) as further:
        assert run.register("gmem-kept", checkpoints.at(str(tmp_path), 30), store) == 1
        saved(tmp_path, further, 50, 0.2)
        saved(tmp_path, further, 60, 0.1)
        prune(str(tmp_path), keep=2)
        further.keep("gmem-kept", checkpoints.all_checkpoints(str(tmp_path)), store)
    registered = there["gmem-kept-step-30"].model_id
    assert mlflow.get_model_version("gmem-kept", "1").source == there["gmem-kept-step-30"].artifact_location
    assert {Path(each.path).name for each in mlflow.list_logged_model_artifacts(registered)} == {
        "ema.safetensors", "manifest.json",
    }  # fmt: skip
    told = mlflow.get_logged_model(registered)
    assert len(points_of(told)) == 2, "its loss on either table, once"
    assert json.loads(told.tags["mlflow.modelVersions"]) == [{"name": "gmem-kept", "version": "1"}]
    assert set(models_of(tracking, further)) == {"gmem-kept-step-50", "gmem-kept-step-60"}


def test_what_is_measured_of_a_checkpoint_is_told_of_its_model_alone(tracking: Tracking, tmp_path: Path) -> None:
    store, pictures = Store(str(tmp_path)), Data.of("emoji-images", "00ff00ff00ff", None)
    with tracking.stage_run("train", None, {}) as run:
        there = [saved(tmp_path, run, step, 0.5) for step in (1, 2)]
        run.keep("gmem-judged", there, store)
    with tracking.stage_run("evaluate", None, {}) as evaluation:
        evaluation.judge(there[0].weights().sha256, {"train/samples/fd": 4.5, "train/samples/kd": 0.1}, 1, pictures)
    first, second = (models_of(tracking, run)[f"gmem-judged-step-{step}"] for step in (1, 2))
    (point,) = (each for each in points_of(first) if each.key == "train/samples/fd")
    assert (point.value, point.step, point.run_id) == (4.5, 1, evaluation.id)
    assert (point.dataset_name, point.dataset_digest) == ("emoji-images", "00ff00ff00ff")
    assert {each.key for each in points_of(second)} == {"held_out_loss"}
    mlflow = client(tracking.uri)
    inputs = mlflow.get_run(evaluation.id).inputs
    assert inputs is not None and [each.model_id for each in inputs.model_inputs] == [first.model_id]
    assert mlflow.get_run(run.id).data.metrics["train/samples/fd"] == 4.5


def test_the_weights_become_a_model_version_with_its_links(tracking: Tracking, tmp_path: Path) -> None:
    about = CheckpointManifest(
        step=5,
        network={"depth": 1},
        latents=Input(uri="latents/emoji-x", version=4),
        bank=Input(uri="bank/emoji-y", version=9),
        encoder={"sha256": "cd"},
    )
    store, weights = Store(str(tmp_path)), {"ema.a": torch.ones(4), "network.a": torch.zeros(4)}
    small = checkpoints.save(str(tmp_path), 5, weights, {}, about)
    large = checkpoints.save(
        str(tmp_path), 6, {"ema.a": torch.ones(5)}, {}, about.model_copy(update={"held_out_loss": 0.25})
    )
    with tracking.stage_run("train", None, {}) as run:
        assert run.register("gmem-emoji", small, store) == 1
        assert run.register("gmem-emoji", small, store) == 1  # the same weights, once
        assert run.register("gmem-emoji", large, store, copy_below=0) == 2
        bare = checkpoints.save(
            str(tmp_path), 7, {"network.a": torch.ones(5)}, {}, about.model_copy(update={"held_out_loss": 0.2})
        )
        assert run.register("gmem-emoji", bare, store) is None
    mlflow = client(tracking.uri)
    first, second = mlflow.get_model_version("gmem-emoji", "1"), mlflow.get_model_version("gmem-emoji", "2")
    assert first.run_id == run.id and first.tags["bank"] == "bank/emoji-y" and first.tags["bank_version"] == "9"
    assert first.tags["latents_version"] == "4" and first.tags["encoder_sha256"] == "cd"
    assert first.tags["sha256"] == small.manifest.files["ema.safetensors"].sha256
    copied = checkpoints.open_checkpoint(str(first.source).removeprefix("file://"))
    assert torch.equal(checkpoints.load(copied)[0]["ema.a"], torch.ones(4))
    (kept,) = (each.model_id for each in outputs_of(mlflow, run) if each.step == 6)
    files = [Path(file.path).name for file in mlflow.list_logged_model_artifacts(kept)]
    assert files == ["checkpoint.txt", "manifest.json"]
    logged = mlflow.get_logged_model(kept)
    assert (logged.status, logged.tags["bank_version"], logged.source_run_id) == ("READY", "9", run.id)
    assert {(each.key, each.value, each.step) for each in points_of(logged)} == {("held_out_loss", 0.25, 6)}
    assert second.tags["checkpoint"] == "checkpoints/step-00000006"
    with tracking.stage_run("evaluate", None, {}) as evaluation:
        for _ in range(2):  # evaluated again it is the same
            evaluation.judge(logged.tags["sha256"], {"fd": 4.5}, 6)
    judged = points_of(mlflow.get_logged_model(kept))
    assert sorted((each.key, each.value, each.step) for each in judged) == [
        ("fd", 4.5, 6),
        *2 * [("held_out_loss", 0.25, 6)],
    ]
    assert mlflow.get_run(run.id).data.metrics["fd"] == 4.5
    assert prune(str(tmp_path), keep=1) == [5], "what was not copied stays"


def test_the_alias_goes_to_what_was_chosen_else_to_the_smallest_loss(tracking: Tracking, tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def saved(step: int, loss: float) -> checkpoints.Checkpoint:
        about = CheckpointManifest(step=step, network={}, held_out_loss=loss)
        weights = {"ema.a": torch.full((2,), float(step)), "ema_9.a": torch.full((2,), -float(step))}
        return checkpoints.save(str(tmp_path), step, weights, {}, about)

    def best() -> str:
        return str(client(tracking.uri).get_model_version_by_alias("gmem-chosen", "best").version)

    with tracking.stage_run("train", None, {}) as run:
        first = saved(1, 0.5)
        assert run.register("gmem-chosen", first, store) == 1 and run.register("gmem-chosen", saved(2, 0.7), store) == 2
        assert best() == "1"
        assert run.register("gmem-chosen", first, store, average="ema_9", chosen="a") == 3 and best() == "3"
        assert run.register("gmem-chosen", first, store, chosen="b") == 4 and best() == "4"
        assert run.register("gmem-chosen", first, store, average="ema_9", chosen="a") == 3 and best() == "3"
        assert run.register("gmem-chosen", saved(4, 0.1), store) == 5 and best() == "3"
