"""The chain across servers and a two-node Ray cluster: through a deployment, killed, attached to, cancelled, refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from infra.local_cluster import LocalCluster, local_cluster, some_pictures
from storage.checkpoints import latest

from .conftest import GMEM, command_line, last_json, pairs

pytestmark = [pytest.mark.trials, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("logs")) as running:
        yield running
    assert not running.processes.members()


@pytest.fixture(scope="module")
def first(cluster: LocalCluster, source: Path) -> list[dict[str, Any]]:
    """The jobs that a run of the deployment came to, in their order."""
    cluster.run_pipeline(source)
    return sorted(cluster.jobs(), key=lambda job: job["start_time"])


def options(cluster: LocalCluster, source: Path, **train: int) -> list[str]:
    """Command-line options of the same small run, with another training."""
    sections = cluster.overrides(source)
    store, sections["train"] = sections.pop("store"), sections["train"] | train
    return command_line(pairs(sections), store)


def gmem(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = cluster.environment | {"COLUMNS": "200"}
    return subprocess.run([GMEM, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False)


def begun(cluster: LocalCluster, *arguments: str) -> subprocess.Popen[str]:
    """The same, left at work once its training has told of a loss."""
    process = subprocess.Popen(
        [GMEM, *arguments], env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if "loss" in line:
            return process
    raise AssertionError(told)


def attempts(cluster: LocalCluster, stage: str) -> list[dict[str, Any]]:
    found = [job for job in cluster.jobs() if job["submission_id"].startswith(f"gmem-{stage}-")]
    return sorted(found, key=lambda job: job["start_time"])


def ended(cluster: LocalCluster, job: str, seconds: float = 60) -> str:
    for _ in range(int(seconds)):
        status = next(j["status"] for j in cluster.jobs() if j["submission_id"] == job)
        if status not in ("PENDING", "RUNNING"):
            break
        time.sleep(1)
    return str(status)


def test_a_deployment_runs_every_stage_as_a_job(first: list[dict[str, Any]]) -> None:
    assert [job["status"] for job in first] == ["SUCCEEDED"] * 5
    assert [job["submission_id"].split("-")[1] for job in first] == ["ingest", "latents", "bank", "train", "evaluate"]
    assert all(job["submission_id"].endswith("-1") for job in first)


def test_progress_reaches_prefect_and_what_was_reserved_mlflow(
    cluster: LocalCluster, first: list[dict[str, Any]]
) -> None:
    told = cluster.command("prefect", "artifact", "ls", "--limit", "100").stdout
    assert "train-progress" in told and "evaluate-artifacts" in told
    client = mlflow.MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("emoji")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for stage in ("ingest", "latents", "bank", "train", "evaluate"):
        assert runs[stage].info.status == "FINISHED"
        assert runs[stage].data.metrics["reserved/cpu_hours"] > 0
        assert runs[stage].data.metrics["reserved/gpu_hours"] == 0


def test_a_flow_that_was_killed_finds_its_job_still_at_work(
    cluster: LocalCluster, source: Path, first: list[dict[str, Any]]
) -> None:
    before = len(attempts(cluster, "train"))
    long = ["stage", "train", "emoji", "--json", *options(cluster, source, seed=7, steps=150)]
    killed = begun(cluster, *long)
    killed.kill()
    killed.wait()
    job = attempts(cluster, "train")[-1]
    assert job["status"] == "RUNNING"
    again = gmem(cluster, *long)
    assert last_json(again)["rows"] == 150
    assert f"following job {job['submission_id']}" in again.stderr
    assert len(attempts(cluster, "train")) == before + 1


def test_a_flow_that_is_cancelled_stops_its_job_with_a_checkpoint(
    cluster: LocalCluster, source: Path, first: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = options(cluster, source, seed=9, steps=100_000, checkpoint_every=100_000)
    process = begun(cluster, "stage", "train", "emoji", *endless)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 130, output
    assert ended(cluster, attempts(cluster, "train")[-1]["submission_id"]) == "STOPPED"
    states = last_json(gmem(cluster, "status", "emoji", "--json", *endless))
    training = next(row for row in states if row["kind"] == "training")["uri"]
    for name in (name for name in cluster.environment if name.startswith("AWS_")):
        monkeypatch.setenv(name, cluster.environment[name])
    stopped = latest(training)
    assert stopped is not None and 0 < stopped.step < 100_000


def test_arms_of_an_experiment_share_the_cluster_and_what_they_rest_on(
    cluster: LocalCluster, source: Path, first: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The second waits for the first where both need the same, and both train at the same time."""
    arms = {"plain": {"train.lr": 1e-3}, "slower": {"train.lr": 1e-4}}
    (tmp_path / "two.yaml").write_text(json.dumps({"arms": arms, "seeds": [21]}))  # which is YAML too
    # A checkpoint every third step, as of the trials that kill, would be most of the time.
    small = options(cluster, source, steps=150, checkpoint_every=75, held_out_every=75)
    before = len(attempts(cluster, "train"))
    done = gmem(cluster, "compare-arms", "emoji", str(tmp_path / "two.yaml"), "--at-once", "2", "--json", *small)
    assert [point["arm"] for point in last_json(done)["points"]] == list(arms)
    trainings = attempts(cluster, "train")[before:]
    assert [job["status"] for job in trainings] == ["SUCCEEDED"] * 2
    assert trainings[1]["start_time"] < trainings[0]["end_time"]


def test_bad_input_comes_back_as_the_jobs_own_sentence(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.jpg").write_text("no picture")
    refused = gmem(cluster, "stage", "ingest", "emoji", *options(cluster, tmp_path / "nothing"))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(attempts(cluster, "ingest")) <= 2  # tried once, since bad input stays bad


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN_PATH": "{wrong}"}, {"RAY_AUTH_MODE": "disabled"}])
def test_the_cluster_wants_its_token(cluster: LocalCluster, tmp_path: Path, variables: dict[str, str]) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    changed = {key: value.format(wrong=wrong) for key, value in variables.items()}
    asked = (
        "import json, os; from flows.recipe.files import load; from flows.engine.stage import Plan; from flows.stages.train.stage import STAGE;"
        "from flows.remote.submission import Jobs; Jobs(os.environ['RAY_ADDRESS'], STAGE, Plan(load('emoji'))).attempts()"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], env=cluster.environment | changed, cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr.strip().splitlines()[-1]


def test_the_prefect_server_is_killed_during_training(
    cluster: LocalCluster, source: Path, first: list[dict[str, Any]], trial: Callable[..., None]
) -> None:
    """The job goes on by itself; the flow ends with it, or the next one finds what it made."""
    before = len(attempts(cluster, "train"))
    long = ["stage", "train", "emoji", "--json", *options(cluster, source, seed=11, steps=150)]
    flow = begun(cluster, *long)
    cluster.processes.stop("prefect", signal.SIGKILL)
    time.sleep(15)
    cluster.begin_prefect()()
    flow.communicate(timeout=300)
    assert last_json(gmem(cluster, *long))["rows"] == 150
    jobs = len(attempts(cluster, "train")) - before
    outcome = "the flow ended well" if flow.returncode == 0 else "the next flow found it done"
    trial("train: the Prefect server", "SIGKILL, back after 15 s", 150 * (jobs - 1), 0, 0, of=150, outcome=outcome)


def test_mlflow_is_away_for_a_minute_of_training(
    cluster: LocalCluster, source: Path, first: list[dict[str, Any]], trial: Callable[..., None]
) -> None:
    """Training ends with its curve whole."""
    long = ["stage", "train", "emoji", "--json", *options(cluster, source, seed=12, steps=150)]
    flow = begun(cluster, *long)
    cluster.processes.stop("mlflow", signal.SIGKILL)
    time.sleep(60)
    cluster.begin_mlflow()()
    output, _ = flow.communicate(timeout=300)
    assert flow.returncode == 0, output
    client = mlflow.MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"])
    curve = client.get_metric_history(json.loads(output.strip().splitlines()[-1])["run_id"], "loss/total")
    steps = [point.step for point in curve]
    expected = set(range(2, 151, 2))
    trial("train: MLflow's server", "away for 60 s", 0, len(expected - set(steps)), len(steps) - len(set(steps)), of=75)
