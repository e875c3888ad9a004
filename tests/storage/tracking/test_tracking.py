from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from werkzeug.serving import make_server

from storage import checkpoints
from storage.addresses import without_userinfo
from storage.checkpoints import CheckpointManifest
from storage.store import Input, Store
from storage.tracking.access import client, create_database, cut, flatten
from storage.tracking.run import Run
from storage.tracking.tracking import Tracking, TrackingError


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_store_that_was_moved_or_copied_is_written_to_where_it_is_now(
    how: Callable[..., Any], tmp_path: Path
) -> None:
    def noted(store: Path, text: bytes) -> tuple[Tracking, str]:
        tracking = Tracking.open(None, Store(str(store)), "emoji")
        with tracking.stage_run("train", None, {}) as run:
            run.artifact("note.txt", text)
        return tracking, run.id

    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    _, first = noted(old, b"before")
    files = sorted(old.rglob("note.txt"))
    new.parent.mkdir()
    how(old, new)
    tracking, second = noted(new, b"after")
    assert sorted(old.rglob("note.txt")) == (files if how is shutil.copytree else [])
    for run, text in ((first, "before"), (second, "after")):
        assert Path(client(tracking.uri).download_artifacts(run, "note.txt", str(tmp_path))).read_text() == text
    assert len(list(new.rglob("note.txt"))) == 2


def test_parent_and_child_runs_with_everything_in_them(tracking: Tracking, tmp_path: Path) -> None:
    parameters = {"train": {"steps": 2000, "betas": [0.9, 0.95]}, "long": "x" * 7000, "odd$key": None}
    with tracking.pipeline_run(parameters) as parent:
        with tracking.stage_run("train", parent, {"train.steps": 2000}) as run:
            for step in range(30):
                run.metrics({"loss/total": 1.0 / (step + 1), "rate": 5.0}, step)
            run.artifact("notes/read.md", b"# hello")
            run.table("summary", [{"stage": "train", "rows": 3}, {"stage": "bank", "rows": 4}])
            run.dataset("bank", "s3://x/bank", "0123456789ab", 17, "training", rows=5)
            run.tags({"note": "y"})
        with pytest.raises(RuntimeError), tracking.stage_run("bank", parent, {}) as failed:
            raise RuntimeError("no more disk")
        with pytest.raises(KeyboardInterrupt), tracking.stage_run("latents", parent, {}) as killed:
            raise KeyboardInterrupt
        tracking.link(parent, "ingest", run.id)

    mlflow = client(tracking.uri)
    above = mlflow.get_run(parent)
    assert above.info.status == "FINISHED"
    assert above.data.params["train.steps"] == "2000" and above.data.params["odd_key"] == "None"
    assert above.data.params["long"].endswith("x… (7000 characters in all)") and len(above.data.params["long"]) == 6000
    assert above.data.tags["gmem.reused.ingest"] == run.id and run.id in above.data.tags["mlflow.note.content"]
    below = mlflow.get_run(run.id)
    assert below.info.status == "FINISHED" and below.info.run_name == "train"
    assert below.data.tags["mlflow.parentRunId"] == parent and below.data.tags["note"] == "y"
    history = mlflow.get_metric_history(run.id, "loss/total")
    assert [point.step for point in history] == list(range(30)) and history[3].value == 0.25
    assert below.inputs is not None
    (used,) = below.inputs.dataset_inputs
    assert used.dataset.name == "bank" and used.dataset.digest == "0123456789ab@17" and used.tags[0].value == "training"
    assert json.loads(used.dataset.source)["uri"] == "s3://x/bank"
    files = {file.path for file in mlflow.list_artifacts(run.id)}
    assert files == {"notes", "summary.json"}
    assert str(tmp_path) not in below.info.artifact_uri and "mlflow-artifacts/emoji" in below.info.artifact_uri
    assert mlflow.get_run(failed.id).info.status == "FAILED"
    assert mlflow.get_run(failed.id).data.tags["gmem.error"] == "no more disk"
    assert mlflow.get_run(killed.id).info.status == "KILLED"
    assert tracking.command == f"mlflow ui --backend-store-uri {tracking.uri}"


def test_runs_are_told_apart_and_compared_in_one_table(tracking: Tracking) -> None:
    changed = {"store": "elsewhere", "train": {"steps": 60, "start_from": None}, "cluster": {"cpus": 2}}
    with tracking.pipeline_run({"train": {"steps": 60}}, changed, {"prefect.flow_run": "ab"}) as parent:
        tracking.conclude(parent, {"train/fd": 7.5}, 60)
        tracking.conclude(parent, {}, None)
    mlflow = client(tracking.uri)
    run = mlflow.get_run(parent)
    assert run.info.run_name == "pipeline emoji train.steps=60, train.start_from=None"
    assert run.data.tags["gmem.set.train.steps"] == "60" and run.data.tags["prefect.flow_run"] == "ab"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40 and run.data.tags["gmem.git.dirty"] in ("true", "false")
    (point,) = mlflow.get_metric_history(parent, "train/fd")
    assert (point.value, point.step) == (7.5, 60)
    about = mlflow.get_experiment(run.info.experiment_id).tags
    assert about["mlflow.experimentKind"] == "custom_model_development"
    with tracking.pipeline_run({}, {"data": {"source": "x" * 200}}) as other:
        name = mlflow.get_run(other).info.run_name
    assert name is not None and len(name) == 120 and name.endswith("x…")
    assert tracking.page(parent) == f"run {parent}, {tracking.command}"
    assert replace(tracking, uri="http://127.0.0.1:9").page(parent).startswith("run ")  # nobody there


def test_a_run_of_another_mlflow_is_no_reason_to_warn(tracking: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    """A store whose artifacts were made while another server was named."""
    elsewhere = "0" * 32
    with caplog.at_level("WARNING", "storage"):
        with tracking.pipeline_run({}) as parent:
            tracking.link(parent, "ingest", elsewhere)
        assert client(tracking.uri).get_run(parent).info.status == "FINISHED"
    assert caplog.text == ""
    with caplog.at_level("WARNING", "storage"):
        replace(tracking, uri="http://127.0.0.1:9").page(parent)
    assert "asking for a run's experiment failed" in caplog.text


def test_images_have_a_step_each(tracking: Tracking) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "png")
    with tracking.stage_run("train", None, {}) as run:
        for step in (1, 2):
            run.image("samples", buffer.getvalue(), step)
    names = [Path(file.path).name for file in client(tracking.uri).list_artifacts(run.id, "images")]
    assert sum(name.endswith(".png") and name.startswith("samples") for name in names) == 2


def test_what_a_killed_process_left_is_ended_by_the_next(tmp_path: Path) -> None:
    tracking = Tracking.open(None, Store(str(tmp_path)), "emoji")
    program = (
        "import os, signal, sys; from storage.store import Store; from storage.tracking.tracking import Tracking;"
        "tracking = Tracking.open(sys.argv[1], Store(sys.argv[2]), 'emoji');"
        "tracking.pipeline_run({}).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, tracking.uri, str(tmp_path)], check=False)
    mlflow = client(tracking.uri)
    with tracking.pipeline_run({}) as parent, tracking.stage_run("train", parent, {}) as stage:
        experiment = mlflow.get_run(parent).info.experiment_id
        statuses = {run.info.run_id: run.info.status for run in mlflow.search_runs([experiment])}
        assert statuses.pop(parent) == statuses.pop(stage.id) == "RUNNING"
        assert list(statuses.values()) == ["KILLED"]


def test_an_interrupted_stage_goes_on_in_the_same_run(tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), tracking.stage_run("train", None, {"lr": 1, "steps": 5}, "training/a") as first:
        first.metrics({"loss": 1.0}, 1)
        raise RuntimeError
    with tracking.stage_run("train", None, {"lr": 1, "steps": 9, "new": 2}, "training/a") as second:
        second.metrics({"loss": 0.5}, 2)
    with tracking.stage_run("train", None, {}, "training/a") as third:
        pass
    assert second.id == first.id != third.id
    found = client(tracking.uri).get_run(first.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "1", "steps": "5", "new": "2"} and found.data.tags["changed.steps"] == "9"
    assert [p.step for p in client(tracking.uri).get_metric_history(first.id, "loss")] == [1, 2]


def test_another_process_writes_to_a_run_it_was_told_of(tracking: Tracking) -> None:
    with tracking.stage_run("train", None, {}) as run:
        code = f"""
import pickle, sys
with pickle.loads({pickle.dumps(run)!r}) as run:
    run.metrics({{"loss": 0.25}}, 7)
    assert not {{"mlflow", "torch"}} & set(sys.modules)  # loaded by nobody who waits for it
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    (point,) = client(tracking.uri).get_metric_history(run.id, "loss")
    assert (point.value, point.step) == (0.25, 7)


def test_passwords_in_addresses_are_not_shown(tracking: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    secret = "http://me:p@ss-word@127.0.0.1:9/mlflow"
    assert without_userinfo(f"at {secret} and s3://bucket/a@b") == "at http://127.0.0.1:9/mlflow and s3://bucket/a@b"
    with tracking.pipeline_run({"tracking": {"uri": secret}, "cluster": {"address": secret}}) as parent:
        pass
    params = client(tracking.uri).get_run(parent).data.params
    assert params["tracking.uri"] == params["cluster.address"] == "http://127.0.0.1:9/mlflow"
    with pytest.raises(RuntimeError), tracking.pipeline_run({}) as parent:
        raise RuntimeError(f"{secret} does not answer")
    assert "ss-word" not in client(tracking.uri).get_run(parent).data.tags["gmem.error"]
    assert Tracking(secret, "emoji").command == "http://127.0.0.1:9/mlflow"
    with pytest.raises(TrackingError) as refused:
        client(secret.replace("http", "nothing"))
    run = Run(secret, "0" * 32)
    with caplog.at_level("WARNING", "storage"):
        run.metrics({"loss": 1.0})
        run.close(timeout=3.0)
    assert "entries are kept" in caplog.text and "are lost" in caplog.text
    assert "ss-word" not in caplog.text + str(refused.value)


def test_system_metrics_are_measured(tracking: Tracking) -> None:
    with tracking.stage_run("train", None, {}) as run:
        run.system_metrics(every=0.1, node="worker-0")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not run._entries.queue:
            time.sleep(0.05)
    names = set(client(tracking.uri).get_run(run.id).data.metrics)
    assert {"system/worker-0/cpu_utilization_percentage", "system/worker-0/system_memory_usage_megabytes"} <= names


def test_logging_waits_for_nothing_and_a_bad_entry_stops_nothing(tracking: Tracking, tmp_path: Path) -> None:
    began = time.monotonic()
    nowhere = Run(f"sqlite:////proc/{tmp_path.name}/mlflow.db", "a" * 32)
    for step in range(2000):
        nowhere.metrics({"loss": 1.0}, step)
    assert time.monotonic() - began < 1.0
    nowhere.close(timeout=1.0)
    with tracking.stage_run("train", None, {}) as run:
        run.artifact("bad", "no bytes")  # type: ignore[arg-type]
        run.metrics({"bad name €$?": 1.0})
        run.metrics({"good": float("nan")}, 1)
        assert run.flush(20)
        run.metrics({"good": 2.0}, 2)
    assert client(tracking.uri).get_run(run.id).data.metrics["good"] == 2.0


def test_many_want_a_database_at_once(tmp_path: Path) -> None:
    """As when Ray's workers start: one creates it under a file lock, the others wait, and all can write."""
    uri = f"sqlite:///{tmp_path}/deep/mlflow.db"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mlflow.db.new").write_text("left by one who was killed")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create_database, [uri] * 4))
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    with Tracking.open(uri, Store(str(tmp_path)), "race").stage_run("x", None, {}) as run:
        run.metrics({"a": 1.0})
    assert client(uri).get_run(run.id).data.metrics == {"a": 1.0}


def test_a_database_that_cannot_be_made_is_told() -> None:
    with pytest.raises(TrackingError, match="cannot be created"):
        create_database("sqlite:////proc/nowhere/mlflow.db")


def test_parameters_are_flattened_and_cut_honestly() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": "1", "a.c": "{}", "d": "[1, 2]"}
    assert flatten({}) == {}
    assert cut("abc", 3) == "abc" and cut("a" * 100, 50) == "a" * 25 + "… (100 characters in all)"


@contextmanager
def server(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's own server application on a real socket, here, since its command takes half a minute to start."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/server.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "files"))
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    from mlflow.server import app

    with patch.dict(os.environ):  # where it serves, MLflow names its own database in MLFLOW_TRACKING_URI
        running = make_server("127.0.0.1", port, app, threaded=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield
        finally:
            running.shutdown()
            running.server_close()
            thread.join()


@contextmanager
def files_elsewhere(folder: Path) -> Iterator[str]:
    """The address of `mlflow server`, whose clients keep files themselves, in a place that they cannot write."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    create_database(f"sqlite:///{folder}/server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--no-serve-artifacts", "--default-artifact-root", "/proc/nowhere", "--port", str(port)]
    command += ["--workers", "1"]
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.mark.timeout(180)
def test_files_that_cannot_be_kept_hold_up_no_metric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "png")
    about = CheckpointManifest(step=5, network={}, bank=Input(uri="bank/emoji-y", version=9))
    checkpoint = checkpoints.save(str(tmp_path), 5, {"ema.a": torch.ones(4)}, {}, about)
    with files_elsewhere(tmp_path) as uri, caplog.at_level("WARNING", "storage"):
        tracking = Tracking.open(uri, Store(str(tmp_path / "runs")), "emoji")
        with tracking.stage_run("train", None, {"a": 1}) as run:
            for step in range(20):
                run.image("samples", picture.getvalue(), step)
                run.artifact(f"notes/{step}.txt", b"hello")
                run.metrics({"loss": float(step)}, step)
            began = time.monotonic()
            run.table("summary", [{"stage": "train"}])
            assert run.flush(20), "files that can never be kept are not waited for"
            assert run.register("gmem-emoji", checkpoint, Store(str(tmp_path))) is None
        assert time.monotonic() - began < 25
        mlflow = client(uri)
        assert [point.value for point in mlflow.get_metric_history(run.id, "loss")] == list(range(20))
        assert mlflow.get_run(run.id).info.status == "FINISHED"
    told = [record.getMessage() for record in caplog.records]
    assert [("some files of run" in text, "were not registered" in text) for text in told] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_a_server_that_goes_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and nobody waits, while the server is away; artifacts and weights go through it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    create_database(f"sqlite:///{tmp_path}/server.db")
    tracking = Tracking.open(f"http://127.0.0.1:{port}", Store(str(tmp_path / "runs")), "emoji")
    about = CheckpointManifest(step=5, network={}, bank=Input(uri="bank/emoji-y", version=9))
    checkpoint = checkpoints.save(str(tmp_path), 5, {"ema.a": torch.ones(4)}, {}, about)
    with server(tmp_path, port, monkeypatch), tracking.stage_run("train", None, {"a": 1}) as first:
        first.metrics({"loss": 1.0}, 1)
    run = Run(tracking.uri, first.id)
    run.metrics({"loss": 2.0}, 2)
    run.artifact("note.txt", b"while it was away")
    assert not run.flush(2.0)
    with server(tmp_path, port, monkeypatch):
        assert run.flush(30)
        assert run.register("gmem-emoji", checkpoint, Store(str(tmp_path))) == 1
        run.close()
        mlflow = client(tracking.uri)
        assert [p.value for p in mlflow.get_metric_history(run.id, "loss")] == [1.0, 2.0]
        assert [f.path for f in mlflow.list_artifacts(run.id)] == ["note.txt"]
        assert mlflow.get_model_version("gmem-emoji", "1").tags["bank_version"] == "9"
        assert mlflow.get_run(run.id).info.status == "FINISHED"
