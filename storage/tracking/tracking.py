"""Tracking with MLflow: an experiment for each recipe, a run for each pipeline run, and below it one for each stage."""

from __future__ import annotations

import getpass
import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import psutil

from storage.addresses import without_userinfo
from storage.letting_go import let_go_by
from storage.store import Store
from storage.tracking.access import ARTIFACTS, SQLITE, TrackingError, client, flatten, patiently, problems, warm_up
from storage.tracking.models import NOTE
from storage.tracking.run import Run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["Run", "Tracking", "TrackingError"]

log = logging.getLogger(__name__)

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow shows what belongs to training, and not what belongs to agents and prompts."""
EXPERIMENT = "experiment"
"""What `gmem.kind` says of the run of an experiment."""
PROCESS = "gmem.process"
"""Tag of a run: the process that writes it, by which others see that it was killed."""
NAME_LENGTH = 120
ELSEWHERE = ("store", "tracking.", "cluster.")
"""Parameters that decide where and how, and nothing of what is made: a run's name does without."""


@dataclass(frozen=True)
class Tracking:
    """Where the runs of one recipe are kept. Cheap to make; MLflow is opened with the first run."""

    uri: str
    experiment: str
    artifacts: str | None = None  # where files of runs go; None leaves it to the server

    @classmethod
    def open(cls, uri: str | None, store: Store, experiment: str) -> Tracking:
        """The recipe's address, else MLFLOW_TRACKING_URI, else an SQLite file in the store (in ./runs when the store
        is a bucket). Begins at once, in the background, to load MLflow and to create a missing database."""
        folder = Path("runs").absolute() if "://" in store.root else Path(store.root)
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{folder}/mlflow.db"
        artifacts = None
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE)).absolute()
            uri, artifacts = f"{SQLITE}{path}", str(path.parent / ARTIFACTS / experiment)
        warm_up(uri)
        return cls(uri, experiment, artifacts)

    @property
    def command(self) -> str:
        """What to type, or to open, to see the runs."""
        local = self.uri.startswith(SQLITE)
        return f"mlflow ui --backend-store-uri {quote(self.uri)}" if local else without_userinfo(self.uri)

    def page(self, run_id: str | None) -> str:
        """Where to see a run: its page on a server, else its id with the command that opens the database."""
        if self.uri.startswith("http") and run_id:
            with suppress_problems("asking for a run's experiment"):
                experiment = client(self.uri).get_run(run_id).info.experiment_id
                return f"{without_userinfo(self.uri)}/{_place(experiment, run_id)}"
        return f"run {run_id}, {self.command}"

    def registered(self, uri: str) -> str:
        """Where the network of a registered model lies, relative to its store where it is kept there alone:
        `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

        Raises:
            TrackingError: there is no such version, or MLflow does not answer.
        """
        name, at, alias = uri.removeprefix("models:/").partition("@")
        name, _, number = (name, "", "") if at else name.rpartition("/")
        mlflow = client(self.uri)
        try:
            found = mlflow.get_model_version_by_alias(name, alias) if at else mlflow.get_model_version(name, number)
        except problems() as problem:
            text = f"MLflow at {self.uri} has no registered network {uri[:80]!r}: give models:/NAME/VERSION or models:/NAME@best"
            raise TrackingError(without_userinfo(text)) from problem
        copied = Path(f"{found.source}/artifacts/network")
        return str(copied) if (copied / "ema.safetensors").exists() else str(found.tags["checkpoint"])

    def models_of(self, bank: str) -> list[dict[str, str]]:
        """Versions of registered models that were trained on the bank in this folder: name, version, checkpoint and
        bank_version of each."""
        found = patiently(lambda: client(self.uri).search_model_versions(), "looking for registered models")
        return [
            {"name": each.name, "version": str(each.version)}
            | {tag: each.tags.get(tag, "") for tag in ("checkpoint", "bank_version")}
            for each in found
            if each.tags.get("bank") == bank
        ]

    @contextmanager
    def pipeline_run(
        self,
        parameters: Mapping[str, Any],
        changed: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[str]:
        """The parent run of one pipeline run; gives its id, and ends it as the block ends.

        Args:
            parameters: all of the recipe, nested.
            changed: what was given another value than in the recipe's file, nested; it tells runs apart, in name and tags.
            tags: further ones.
        """
        differing = flatten(dict(changed)) if changed else {}
        told = ", ".join(f"{key}={value}" for key, value in differing.items() if not key.startswith(ELSEWHERE))
        said = (
            {f"gmem.set.{key}": value for key, value in differing.items()}
            | dict(tags or {})
            | {"gmem.kind": "pipeline"}
        )
        with self._run(_short(f"pipeline {self.experiment} {told}".rstrip()), parameters, said) as run:
            yield run.id

    @contextmanager
    def experiment_run(
        self, name: str, parameters: Mapping[str, Any], kind: str = EXPERIMENT, parent: str | None = None
    ) -> Iterator[Run]:
        """A run of a whole experiment, below which others hang, or of another kind, such as one of its trials."""
        tags = {"gmem.kind": kind} | ({"mlflow.parentRunId": parent} if parent else {})
        with self._run(_short(name), parameters, tags) as run:
            yield run

    def latest(self, kind: str = EXPERIMENT) -> dict[str, str]:
        """The newest finished run of each name and of a kind, of this recipe, by its name."""
        query = f"tags.`gmem.kind` = '{kind}' and attributes.status = 'FINISHED'"
        found = client(self.uri).search_runs([self._experiment_id()], query, order_by=["attributes.end_time DESC"])
        newest: dict[str, str] = {}
        for run in found:
            newest.setdefault(run.info.run_name, run.info.run_id)
        return newest

    def read(self, run_id: str, name: str) -> bytes:
        """The content of a file of a run; TrackingError where there is none, or MLflow does not answer."""
        try:
            with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
                return Path(client(self.uri).download_artifacts(run_id, name, folder)).read_bytes()
        except problems() as problem:
            text = f"run {run_id} in MLflow at {self.uri} gave no {name} ({problem})"
            raise TrackingError(without_userinfo(text)) from problem

    def conclude(self, parent: str, metrics: Mapping[str, float], step: int | None) -> None:
        """Puts what a stage came to beside the parameters of the pipeline's run, so that runs are compared in one table."""
        if metrics:
            with Run(self.uri, parent) as run:
                run.metrics(metrics, step)

    @contextmanager
    def stage_run(
        self, stage: str, parent: str | None, parameters: Mapping[str, Any], artifact: str | None = None
    ) -> Iterator[Run]:
        """A stage's run below its parent's. It is FINISHED, FAILED or KILLED as the block ends.

        With `artifact` (its folder in the store), a run of that artifact which never finished is continued instead
        of another begun: a training that was interrupted keeps its curves.
        """
        tags = {"gmem.kind": "stage", "gmem.stage": stage}
        if parent:
            tags["mlflow.parentRunId"] = parent
        if artifact:
            tags["gmem.artifact"] = artifact
        with self._run(stage, parameters, tags) as run:
            yield run

    def link(self, parent: str, stage: str, run_id: str) -> None:
        """Says in the parent run which earlier run made what this stage did not have to make again."""
        with suppress_problems(f"linking stage {stage}"):
            mlflow = client(self.uri)
            mlflow.set_tag(parent, f"gmem.reused.{stage}", run_id)
            experiment = mlflow.get_run(run_id).info.experiment_id
            note = mlflow.get_run(parent).data.tags.get(NOTE, "")
            line = f"- {stage}: made earlier by [this run]({_place(experiment, run_id)})"
            mlflow.set_tag(parent, NOTE, f"{note}\n{line}".strip())

    @contextmanager
    def _run(self, name: str, parameters: Mapping[str, Any], tags: dict[str, str]) -> Iterator[Run]:
        run = Run(self.uri, patiently(lambda: self._begin(name, tags), "beginning a run"))
        run.params(parameters)
        status = "KILLED"  # unless we learn better: SystemExit, KeyboardInterrupt, a cancelled flow
        try:
            with let_go_by(lambda: client(self.uri).set_terminated(run.id, "KILLED")):
                yield run
            status = "FINISHED"
        except Exception as problem:
            status = "FAILED"
            run.tags({"gmem.error": str(problem)})
            raise
        finally:
            run.close()
            with suppress_problems(f"ending run {run.id}"):
                patiently(lambda: client(self.uri).set_terminated(run.id, status), "ending a run", 20)

    def _begin(self, name: str, tags: dict[str, str]) -> str:
        """Id of an unfinished run with the same artifact, taken up again, or of a new run."""
        mlflow, experiment = client(self.uri), self._experiment_id()
        _end_orphans(mlflow, experiment)
        tags = tags | {PROCESS: _process(os.getpid())}
        if artifact := tags.get("gmem.artifact"):
            query = f"tags.`gmem.artifact` = '{artifact}' and attributes.status != 'FINISHED'"
            for earlier in mlflow.search_runs([experiment], query, max_results=1):
                mlflow.update_run(earlier.info.run_id, status="RUNNING")
                for key, value in tags.items():
                    mlflow.set_tag(earlier.info.run_id, key, value)
                return str(earlier.info.run_id)
        about = {"mlflow.source.name": "gmem", "mlflow.source.type": "JOB", "mlflow.user": _user()} | _commit()
        return str(mlflow.create_run(experiment, tags=about | tags, run_name=name).info.run_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        mlflow = client(self.uri)
        found = mlflow.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(mlflow.create_experiment(self.experiment, artifact_location=self.artifacts, tags=KIND))
            except MlflowException as problem:
                if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = mlflow.get_experiment_by_name(self.experiment)  # another pipeline was faster
        assert found is not None, "it exists already"
        if found.lifecycle_stage == "deleted":
            mlflow.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


@contextmanager
def suppress_problems(doing: str) -> Iterator[None]:
    """Nothing MLflow does may cost a result: a problem is told, and work goes on."""
    try:
        yield
    except problems() as problem:
        # A run that it does not know is kept by another MLflow, where the artifact was made.
        unknown = getattr(problem, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        log.log(
            logging.INFO if unknown else logging.WARNING,
            "MLflow: %s failed: %s",
            doing,
            without_userinfo(str(problem)),
        )


def _end_orphans(mlflow: MlflowClient, experiment: str) -> None:
    """Ends runs whose process on this machine is no more: it was killed without a word."""
    for run in mlflow.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        host, _, rest = run.data.tags.get(PROCESS, "").rpartition("@")
        pid, _, _ = rest.partition(":")
        if host == socket.gethostname() and pid.isdigit() and _process(int(pid)) != run.data.tags[PROCESS]:
            mlflow.set_terminated(run.info.run_id, "KILLED")


def _process(pid: int) -> str:
    """This machine's process of this number, told from later ones by when it began; empty when there is none."""
    try:
        return f"{socket.gethostname()}@{pid}:{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


@cache
def _commit() -> dict[str, str]:
    """The commit of the sources, where they are a checkout, and whether files differ from it."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return {}
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit.strip(), "gmem.git.dirty": str(bool(changes.strip())).lower()}


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _place(experiment: str, run_id: str) -> str:
    """A run's page, as MLflow shows what belongs to training, and not to agents."""
    return f"#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def _user() -> str:
    with suppress(Exception):
        return getpass.getuser()
    return "unknown"
