"""A stage as a job on a cluster, through Ray's jobs API: submitted, found again, followed, stopped.

The id of a job is made of stage, store, fingerprints and attempt, so that a flow which was killed and runs again, on
whatever machine, computes the same id, finds the job still at work and follows it. The project's code travels with
the job; the cluster caches it by content. The store and the recipe's paths must be reachable from the cluster's nodes,
and so must MLflow; their credentials come from the nodes' own environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cluster.errors import ClusterError
from flows.cluster.resources import GRACE_SECONDS
from flows.engine.context import Result
from flows.engine.errors import StageError
from flows.engine.progress import Failure, Progress, replay
from flows.engine.stage import Plan, Stage, check_inputs, result_of
from flows.remote.job import REQUEST, Request
from storage.addresses import without_userinfo
from storage.errors import Refused
from storage.tracking.tracking import Tracking

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PACKAGES = ("flows", "gmem", "storage")
ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds for which a cluster that does not answer is asked again, before the attempt is given up."""


def submit(
    stage: Stage, plan: Plan, tracking: Tracking, parent: str | None, address: str, progress: Progress
) -> Result:
    """Has the stage built on the cluster: by a job that is at work on it already, or by a new one.

    Raises the job's own Refused for bad input, ClusterError for whatever may pass. A flow that is cancelled or
    runs out of time stops the job; one that merely loses the cluster leaves it at work.
    """
    check_inputs(stage, plan)
    start, jobs = time.monotonic(), Jobs(address, stage, plan)
    while plan.missing(stage):
        job, ours = jobs.running(), False
        if job:
            progress.note(f"following job {job}, which is at work already")
        else:
            job, ours = jobs.begin(Request.of(stage, plan, tracking, parent)), True
            progress.note(f"job {job} submitted to {jobs.where}")
        jobs.follow(job, progress)
        if ours and plan.missing(stage):
            raise StageError(
                f"job {job} ended well, but what it made is not in {plan.store.root} as seen from here; "
                f"name a store that the cluster and this machine share, such as s3://…"
            )
    return result_of(stage, plan, True, time.monotonic() - start)


class Jobs:
    """The attempts at one stage's artifacts on one cluster."""

    def __init__(self, address: str, stage: Stage, plan: Plan) -> None:
        self.address = address
        self.client = self._connect(address)
        wanted = [plan.artifact(part).uri for part in stage.wanted(plan.recipe)]
        self.name = f"gmem-{stage.name}-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}"

    @property
    def where(self) -> str:
        """The address as it may be shown: without a password."""
        return without_userinfo(self.address)

    def _connect(self, address: str) -> JobSubmissionClient:
        if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:  # said before Ray reads it, once
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)  # its own account of each upload and connection
        try:
            return JobSubmissionClient(address)
        except Exception as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ClusterError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(self.address, self.where)
        return ClusterError(
            f"the Ray cluster's jobs API at {self.where} cannot be used ({reason.rstrip('.')}); "
            f"see whether it is up, and whether RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH hold its token"
        )

    def attempts(self) -> dict[int, JobDetails]:
        """Every attempt the cluster remembers, by number."""
        try:
            known = self.client.list_jobs()
        except Exception as error:
            raise self._unusable(error) from error
        ours = [job for job in known if (job.submission_id or "").rpartition("-")[0] == self.name]
        return {int(str(job.submission_id).rpartition("-")[2]): job for job in ours}

    def running(self) -> str | None:
        """The id of the attempt that is at work or waits to be."""
        attempts = self.attempts()
        newest = attempts[max(attempts)] if attempts else None
        return newest.submission_id if newest and not newest.status.is_terminal() else None

    def begin(self, request: Request) -> str:
        """Submits the next attempt; of two flows that do so at once, both follow the one job that comes of it."""
        job = f"{self.name}-{max(self.attempts(), default=0) + 1}"
        variables = {
            REQUEST: request.model_dump_json(),
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(GRACE_SECONDS) + 30),  # before the cluster kills what it stops
        }
        try:
            with shipped() as code:
                self.client.submit_job(
                    entrypoint="python -m flows.remote.job",
                    submission_id=job,
                    runtime_env={"working_dir": code, "env_vars": variables},
                    metadata={"stage": request.stage, "recipe": request.recipe.name, "store": request.recipe.store},
                )
        except Exception as error:
            if self.running() == job:
                return job
            raise self._unusable(error) from error
        return job

    def follow(self, job: str, progress: Progress) -> None:
        """Passes on what the job tells until it has ended; raises what it failed of. Stops it when interrupted."""
        output, failure = Output(self.client, job), None
        try:
            for line in output:
                failure = replay(line, progress) or failure
        except BaseException as reason:
            # A flow that is interrupted, cancelled or out of time ends its job; one that has trouble leaves it alone.
            if isinstance(reason, TimeoutError) or not isinstance(reason, Exception):
                self._stop(job, output, progress)
            raise
        self._judge(job, failure)

    def _stop(self, job: str, output: Output, progress: Progress) -> None:
        progress.note(f"stopping job {job}; it commits what it has")
        self.client.stop_job(job)
        for line in output:
            replay(line, progress)

    def _judge(self, job: str, failure: Failure | None) -> None:
        info = self.client.get_job_info(job)
        if info.status == "SUCCEEDED":
            return
        if failure and failure.bad_input:
            raise Refused(failure.sentence)
        if info.status == "STOPPED":
            raise ClusterError(f"job {job} was stopped on the cluster; run again to go on from what is committed")
        last = (info.message or "no further words").strip().splitlines()[-1]
        raise ClusterError(f"job {job} failed: {failure.sentence if failure else last}")


@contextmanager
def shipped() -> Iterator[str]:
    """A folder with the project's packages, and their version, as the cluster's processes will import them."""
    with tempfile.TemporaryDirectory(prefix="gmem-code-") as folder:
        for package in PACKAGES:
            shutil.copytree(ROOT / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        release = installed("gmem-pipeline")
        about = Path(folder, f"gmem_pipeline-{release}.dist-info", "METADATA")
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: gmem-pipeline\nVersion: {release}\n")
        yield folder


class Output:
    """The lines a job writes, each once, until the job has ended; iterate again after an interruption to go on."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client, self.job = client, job
        self.given, self.rest = 0, ""

    def __iter__(self) -> Iterator[str]:
        answered = time.monotonic()
        while True:
            skip = self.given  # a new connection begins with the first line again
            for chunk in self._chunks():
                new, skip = chunk[skip:], max(0, skip - len(chunk))
                self.given += len(new)
                *lines, self.rest = (self.rest + new).split("\n")
                yield from lines
            try:
                if self.client.get_job_status(self.job).is_terminal():
                    break
                answered = time.monotonic()
            except TimeoutError:  # of the flow, not of the cluster
                raise
            except Exception as error:
                if time.monotonic() - answered > PATIENCE:
                    raise ClusterError(f"the cluster has not answered for {PATIENCE:.0f} s: {error}") from error
            time.sleep(1)
        if self.rest:
            yield self.rest

    def _chunks(self) -> Iterator[str]:
        """Pieces of the output as they come, by a thread, so that a signal reaches this one at once."""
        pieces: queue.Queue[str | None] = queue.Queue()

        async def tail() -> None:
            async for piece in self.client.tail_job_logs(self.job):
                pieces.put(piece)

        def read() -> None:
            with suppress(Exception):  # whether the job or the connection ended, its status says
                asyncio.run(tail())
            pieces.put(None)

        threading.Thread(target=read, name=f"follow-{self.job}", daemon=True).start()
        while True:
            with suppress(queue.Empty):  # every second, so that a thread that others wait for can be interrupted too
                if (piece := pieces.get(timeout=1)) is None:
                    return
                yield piece
