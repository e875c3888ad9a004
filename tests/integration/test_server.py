"""The deployments as their users meet them: a real server, a process worker, `prefect deploy --all`, a run that completes."""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import Flow, get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running

from flows.experiments.design import names as experiments
from flows.recipe.files import assignments
from flows.recipe.files import names as recipes
from flows.stages.chain import STAGES
from flows.upkeep import bank_add, bank_optimise, bank_withdraw
from infra.alerts import HEARTBEAT, ZOMBIES, end_silent_runs, watch
from storage.checkpoints import latest
from storage.store import Store
from storage.tracking.access import client as mlflow_of

from .conftest import SMALL
from .test_readme import README

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))
(LINES,) = (block for block in README if "prefect server start &" in block)
"""What README says to type: a server, a work pool, deployments, a worker, and last a run."""


class Server:
    """A Prefect server with a worker, and the command that talks to it."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = environment | quiet | {"PREFECT_API_URL": self.api}
        self.logs, self.processes = logs, list[subprocess.Popen[bytes]]()

    def begin(self, script: str) -> None:
        """Types these lines into a shell whose path has our programs, on a port of their own."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = self.environment | {"PATH": path, "PREFECT_SERVER_API_PORT": str(self.port)}
        environment.pop("PREFECT_API_URL")  # the script sets it
        command = ["bash", "-ec", script.replace("4200", str(self.port)) + "\nwait\n"]
        log = (self.logs / "worker.log").open("wb")
        self.processes.append(
            subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        )

    def prefect(self, *arguments: str) -> str:
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def logged(self, run: str) -> str:
        """What a flow run and its tasks have logged."""
        entries = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC")
        return "\n".join(entry["message"] for entry in entries)

    def ended(self, flow: str) -> str:
        """State of the flow's newest run, once it has ended."""
        for _ in range(400):
            runs = self.ask("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_DESC")
            if runs and runs[0]["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return str(runs[0]["state"]["type"])
            time.sleep(2)
        raise AssertionError(f"{flow} did not end: " + (self.logs / "worker.log").read_text()[-5000:])

    def begun(self, deployment: str, store: Path, changes: list[str]) -> UUID:
        """A run of a deployment in a store, which is not waited for."""
        overrides = assignments(changes) | {"store": str(store)}
        with temporary_settings({PREFECT_API_URL: self.api}):
            run: Any = run_deployment(deployment, parameters={"recipe": "emoji", "overrides": overrides}, timeout=0)
        return UUID(str(run.id))

    def training(self, store: Path, changes: list[str]) -> UUID:
        """A run that has begun to train: a checkpoint or a loss can be seen."""
        log = self.logs / "worker.log"
        before = log.read_text().count("  loss ")
        run = self.begun("train/train", store, changes)
        for _ in range(300):
            if log.read_text().count("  loss ") > before:
                return run
            time.sleep(1)
        raise AssertionError(log.read_text()[-5000:])

    def state(self, run: UUID) -> str:
        """Of a run, once it has ended."""
        for _ in range(300):
            with urllib.request.urlopen(f"{self.api}/flow_runs/{run}", timeout=30) as answer:
                state = str(json.load(answer)["state"]["type"])
            if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return state
            time.sleep(1)
        raise AssertionError((self.logs / "worker.log").read_text()[-5000:])

    def process_of(self, run: UUID) -> psutil.Process:
        """The process in which the worker runs a flow."""
        for process in psutil.Process(self.processes[0].pid).children(recursive=True):
            with suppress(psutil.Error):
                if str(run) in process.environ().values() and "prefect" in " ".join(process.cmdline()):
                    return process
        raise AssertionError(f"nobody runs {run}")

    def wait_for_worker(self) -> None:
        """Until all of the script's lines have been carried out."""
        for _ in range(300):
            assert self.processes[0].poll() is None, (self.logs / "worker.log").read_text()[-5000:]
            try:
                if self.ask("work_pools/gmem/workers/filter"):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
            time.sleep(1)
        raise AssertionError((self.logs / "worker.log").read_text()[-5000:])

    def stop(self) -> None:
        for process in self.processes[::-1]:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            _, alive = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=20)
            for left in alive:
                left.kill()


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of each file below a folder."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture(scope="module")
def server(surroundings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(surroundings, tmp_path_factory.mktemp("logs"))
    try:
        running.begin("\n".join(LINES[:-1]))
        running.wait_for_worker()
        yield running
    finally:
        running.stop()


def test_every_flow_is_deployed_with_the_recipe_as_its_form(server: Server) -> None:
    found = {f"{d['name']}": d for d in server.ask("deployments/filter")}
    # One for each stage, recipe and experiment, and for each flow of the bank's.
    of_the_bank = {flow.name for flow in (bank_add, bank_withdraw, bank_optimise)}
    assert set(found) == {stage.name for stage in STAGES} | set(recipes()) | set(experiments()) | of_the_bank
    assert {"source", "batch", "overrides"} <= set(found["bank-add"]["parameter_openapi_schema"]["properties"])
    form = found["emoji"]["parameter_openapi_schema"]
    assert "steps" in form["definitions"]["TrainOverrides"]["properties"]
    assert not any(schedule["active"] for schedule in found["emoji"]["schedules"])
    assert found["emoji"]["parameters"]["recipe"] == "emoji"


@pytest.mark.timeout(900)
def test_a_deployment_run_goes_on_from_what_is_there_and_leaves_its_artifacts(
    server: Server, pictures: Path, store: Path, first: dict[str, dict[str, Any]]
) -> None:
    """More steps: the training of the first run is continued and evaluated again, and nothing else is computed.

    On a copy of its store, which other tests look into.
    """
    original, store = store, shutil.copytree(store, store.parent / "copied" / store.name)
    before = files_of(original)
    more = [*SMALL, f"data.source={pictures}", "data.max_pixels=100000000", "train.steps=9"]
    overrides = assignments(more) | {"store": str(store)}
    named = ("--flow-run-name", "of nine steps")
    words = shlex.split(LINES[-1].replace('{"train": {"steps": 2000}}', json.dumps(overrides)))
    server.prefect(*words[1:], *named)
    assert server.ended("pipeline") == "COMPLETED", (server.logs / "worker.log").read_text()[-5000:]

    assert files_of(original) == before, "a copy is a store of its own"

    # The first run is in the same database: of each name the newest counts.
    runs = server.ask("flow_runs/filter", sort="EXPECTED_START_TIME_DESC")[::-1]
    parent = next(run for run in runs[::-1] if run["deployment_id"])
    assert parent["name"] == "of nine steps" and "gmem" in parent["tags"]
    (summary,) = server.ask(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [parent["id"]]}, "key": {"any_": ["summary"]}}
    )
    assert (
        "| evaluate | " in summary["data"]
        and "fd-emoji-evaluator of" in summary["data"]
        and "mlflow" in summary["data"]
    )
    states = {run["name"].split("-")[0]: run["state"]["type"] for run in runs}
    assert {states[name] for name in ("ingest", "latents", "bank", "train", "evaluate")} == {"COMPLETED"}
    logged = {run["name"].split("-")[0]: server.logged(run["id"]) for run in runs}
    assert "starting the training worker" in logged["train"] and "latents is there already: 80" in logged["latents"]
    newest_last = server.ask("artifacts/filter", sort="CREATED_DESC")[::-1]
    artifacts = {artifact["key"]: artifact for artifact in newest_last}
    made = {name: json.loads(artifacts[f"{name}-artifacts"]["data"])[-1] for name in first}
    assert [name for name, row in made.items() if row["made"] == "now"] == ["train", "evaluate"]
    assert made["train"]["uri"] == f"{store}/training/{Path(first['train']['artifacts']['training']).name}"
    assert made["train"]["rows"] == 9
    assert artifacts["train-progress"]["type"] == "progress"
    assert artifacts["evaluate-pairs-train"]["type"] == "image"

    # What was made of what, as assets; events arrive a moment later.
    wanted = {"event": {"prefix": ["prefect.asset.materialization"]}}
    for _ in range(60):
        assets = {
            event["resource"]["prefect.resource.id"]: event
            for event in server.ask("events/filter", filter=wanted)["events"]
        }
        if len(assets) >= 3:
            break
        time.sleep(1)
    training = assets[f"file://{made['train']['uri']}"]
    assert training["payload"]["rows"] == 9 and training["payload"]["uri"] == made["train"]["uri"]
    related = {
        (each["prefect.resource.role"], each["prefect.resource.id"].rpartition("/")[0]) for each in training["related"]
    }
    assert {("asset", f"file://{store}/latents"), ("asset", f"file://{store}/bank")} <= related
    assert any(role == "flow-run" for role, _ in related)
    assert f"file://{made['evaluate']['uri']}" in assets


@pytest.mark.trials  # Prefect gives what it cancels half a minute, which a busy machine may need for Ray's end alone
@pytest.mark.timeout(900)
def test_a_training_that_is_cancelled_or_killed_goes_on_when_it_is_run_again(
    server: Server, pictures: Path, store: Path, first: dict[str, dict[str, Any]]
) -> None:
    """A cancel leaves nothing that looks as if it ran still; what a kill leaves is ended by the next run."""
    store = shutil.copytree(store, store.parent / "cancelled" / store.name)
    long = ["train.steps=100000", "train.checkpoint_every=100000", "train.seed=11"]
    common = [*SMALL, f"data.source={pictures}", "data.max_pixels=100000000"]

    def statuses() -> list[str]:
        mlflow = mlflow_of(f"sqlite:///{store}/mlflow.db")
        experiment = mlflow.get_experiment_by_name("emoji")
        runs = mlflow.search_runs([experiment.experiment_id], "tags.`gmem.stage` = 'train'")
        return [run.info.status for run in runs if run.data.params.get("train.seed") == "11"]

    cancelled = server.training(store, [*common, *long])
    server.prefect("flow-run", "cancel", str(cancelled))
    for _ in range(60):  # its process may say first that it was interrupted
        if server.state(cancelled) == "CANCELLED":
            break
        time.sleep(1)
    assert server.state(cancelled) == "CANCELLED"
    (training,) = [each for each in Store(str(store)).artifacts("training") if not each.complete]
    stopped = latest(training)
    assert stopped is not None and 0 < stopped.step < 100_000
    assert training.summary()["state"] == "unfinished" and statuses() == ["KILLED"]

    killed = server.training(store, [*common, *long, "train.checkpoint_every=1"])
    server.process_of(killed).kill()
    assert server.state(killed) == "CRASHED" and statuses() == ["RUNNING"]

    newest = latest(training)
    assert newest is not None and newest.step > stopped.step
    last = server.begun("train/train", store, [*common, *long, f"train.steps={newest.step + 2}"])
    assert server.state(last) == "COMPLETED", (server.logs / "worker.log").read_text()[-5000:]
    finished = latest(training)
    assert finished is not None and finished.step >= newest.step + 2 and statuses() == ["FINISHED"], "one run of it all"


@pytest.mark.timeout(300)
def test_a_person_is_told_of_a_run_that_failed(server: Server, store: Path) -> None:
    told = queue.Queue[str]()

    class Phone(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Phone) as phone, temporary_settings({PREFECT_API_URL: server.api}):
        threading.Thread(target=phone.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{phone.server_port}"
        words = {"text": "{{subject}} {{body}}"}
        with pytest.raises(ValueError, match="there is no block custom-webhook/person"):
            watch("custom-webhook/person")
        CustomWebhookNotificationBlock(name="person", url=url, json_data=words).save("person")
        for _ in range(2):  # the second takes the place of the first
            watch("custom-webhook/person")
        nowhere = json.dumps({"store": str(store), "data": {"source": "/nowhere"}})
        server.prefect("deployment", "run", "ingest/ingest", "-p", f"overrides={nowhere}")
        assert server.ended("ingest") == "FAILED"
        said = told.get(timeout=60)
        assert "ingest has failed" in said and "/nowhere" in said
        phone.shutdown()
    assert told.empty()


@pytest.mark.timeout(300)
def test_a_run_whose_process_is_gone_is_marked_crashed(server: Server) -> None:
    """A stage's flow run, as a process that was killed leaves it: running, with a last heartbeat."""
    with temporary_settings({PREFECT_API_URL: server.api}):
        for _ in range(2):  # the second takes the place of the first
            end_silent_runs(timedelta(seconds=10))
        with get_client(sync_client=True) as client:
            (flow,) = [each for each in client.read_flows() if each.name == "train"]
            left, waiting = (
                client.create_flow_run(Flow(lambda: None, name=flow.name), state=state)
                for state in (Running(), Pending())
            )
            emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{left.id}"})
            for _ in range(120):
                state = client.read_flow_run(left.id).state
                if state and state.is_crashed():
                    break
                time.sleep(1)
            assert state and state.is_crashed() and "its process is gone" in str(state.message)
            untouched = client.read_flow_run(waiting.id).state
            assert untouched and untouched.is_pending(), "it never began, so that nothing is to be heard of it"
            assert len(client.read_automations_by_name(ZOMBIES)) == 1
