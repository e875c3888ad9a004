"""The whole topology as local processes: the servers of infra/compose.yaml without containers.

PostgreSQL (where it is installed), an S3 server, MLflow, Prefect with a process worker, and Ray on two nodes with its
jobs API, each on a free port of this machine with a log of its own. ``python -m infra.local_cluster`` starts them,
runs a small pipeline across them through `prefect deployment run`, and stops them; tests use `local_cluster` alike.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from infra.processes import HOST, Processes, free_ports, get, post, put
from infra.servers import Wait, mlflow, postgres, prefect, ray_nodes, s3

ROOT = Path(__file__).parents[1]
PICTURES = 32
SMALL: dict[str, dict[str, Any]] = {
    "data": {"held_out": 0.3, "shard_size": 16},
    "train": {"steps": 6, "batch": 8, "warmup": 2, "log_every": 2, "held_out_every": 3, "checkpoint_every": 3,
              "sample_every": 0, "align": 0.5},
    "sample": {"steps": 3},
    "evaluate": {"samples": 8, "kernel_subsets": 2},
}  # fmt: skip
"""The demo's recipe made small: every stage, a few pictures, a few steps."""


class LocalCluster:
    """Servers that run, and the environment in which commands use them."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes, self.folder = processes, folder
        self.ports = dict(
            zip(("postgres", "s3", "mlflow", "prefect", "ray", "jobs", "client"), free_ports(7), strict=True)
        )
        self.store = "s3://gmem/runs"
        self.token = folder / "ray-token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.environment = self._environment()
        self.seconds: dict[str, float] = {}
        self.database = ""

    def _environment(self) -> dict[str, str]:
        """Ours, without anybody else's servers. The secrets live as long as the processes."""
        others = ("PREFECT_", "MLFLOW_", "RAY_", "AWS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        password = f"gmem:{secrets.token_hex(16)}"
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GMEM_HOME": str(ROOT),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"http://{HOST}:{self.ports['prefect']}/api",
            "PREFECT_API_AUTH_STRING": password,
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{self.ports['mlflow']}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_ADDRESS": f"http://{HOST}:{self.ports['jobs']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_prestart_worker_first_driver": "false",  # two cores are better used than by workers nobody asked for
            "DO_NOT_TRACK": "1",
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": "gmem",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts every server, each as soon as those are up that it needs."""
        start = time.monotonic()
        ready = {"ray": ray_nodes(self.processes, self.environment, self.ports, self.folder)}
        ready["s3"] = s3(self.processes, self.environment, self.ports["s3"])
        self.database, wait = postgres(self.processes, self.folder, self.ports["postgres"])
        wait()
        ready["prefect"] = self.begin_prefect()
        self._wait("s3", ready.pop("s3"), start)
        for bucket in ("gmem", "mlflow"):
            put(f"{self.environment['AWS_ENDPOINT_URL']}/{bucket}")
        ready["mlflow"] = self.begin_mlflow()
        for name, wait in ready.items():
            self._wait(name, wait, start)
        post(
            f"{self.environment['PREFECT_API_URL']}/work_pools/",
            {"name": "gmem", "type": "process"},
            self.environment["PREFECT_API_AUTH_STRING"],
        )
        self.processes.start("worker", ["prefect", "worker", "start", "--pool", "gmem"], self.environment, cwd=ROOT)
        self.command("prefect", "--no-prompt", "deploy", "--name", "emoji")
        self.seconds["all"] = time.monotonic() - start

    def begin_prefect(self) -> Wait:
        """Starts the server, also again after it was stopped; what it returns waits until it is up."""
        return prefect(self.processes, self.environment, self.ports["prefect"], self.database)

    def begin_mlflow(self) -> Wait:
        return mlflow(self.processes, self.environment, self.ports["mlflow"], self.database, self.folder)

    def _wait(self, name: str, wait: Any, start: float) -> None:
        wait()
        self.seconds[name] = time.monotonic() - start

    def command(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs a command among the servers; RuntimeError with what it said when it fails."""
        done = subprocess.run(
            arguments, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:3])} failed: {(done.stdout + done.stderr)[-3000:]}")
        return done

    def overrides(self, source: Path) -> dict[str, Any]:
        """Of the demo's recipe: small, on these pictures, in the cluster's store."""
        return SMALL | {"store": self.store, "data": SMALL["data"] | {"source": str(source)}}

    def run_pipeline(self, source: Path, timeout: float = 600) -> str:
        """The small pipeline through `prefect deployment run`, to its end; RuntimeError where it does not complete."""
        parameter = f"overrides={json.dumps(self.overrides(source))}"
        watched = ("--watch", "--watch-timeout", str(int(timeout)))
        return self.command(
            "prefect", "deployment", "run", "pipeline/emoji", "-p", parameter, *watched, timeout=timeout + 60
        ).stdout

    def jobs(self) -> list[dict[str, Any]]:
        """What the cluster's jobs API lists."""
        listed = get(f"{self.environment['RAY_ADDRESS']}/api/jobs/", self.token.read_text())
        return [job for job in json.loads(listed) if job["submission_id"]]


@contextmanager
def local_cluster(logs: Path) -> Iterator[LocalCluster]:
    """The topology for as long as the context lasts; afterwards none of its processes is left."""
    folder = Path(tempfile.mkdtemp(prefix="gmem-", dir="/tmp"))  # sockets below it need a short path
    try:
        with Processes(logs) as processes:
            cluster = LocalCluster(processes, folder)
            cluster.start()
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def some_pictures(folder: Path, count: int = PICTURES) -> Path:
    """A folder with the first pictures of the demo's."""
    with tarfile.open(ROOT / "flows" / "assets" / "emoji.tar") as tar:
        members = (member for member in tar if member.isfile() and member.name.endswith((".png", ".webp", ".jpg")))
        for member in islice(members, count):
            picture = tar.extractfile(member)
            assert picture is not None, "a file"
            (folder / member.name).write_bytes(picture.read())
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local_cluster", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--logs", type=Path, default=Path("runs/cluster-logs"), help="folder of the servers' logs")
    parser.add_argument("--stay", action="store_true", help="start the servers, then wait for Ctrl-C")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with local_cluster(options.logs.absolute()) as cluster:
        tell(cluster)
        if options.stay:
            stay(cluster)
        else:
            run(cluster)
    return 0


def tell(cluster: LocalCluster) -> None:
    for name, seconds in cluster.seconds.items():
        print(f"{name:8} up after {seconds:5.1f} s")
    missing = "SQLite, since PostgreSQL is not installed (Debian: apt-get install postgresql)"
    print(f"database {f'PostgreSQL at {cluster.database}' if cluster.database else missing}")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_ENDPOINT_URL"):
        print(f"{name}={cluster.environment[name]}", flush=True)


def stay(cluster: LocalCluster) -> None:
    """Until Ctrl-C; meanwhile other terminals use the servers with what a file says."""
    file = cluster.folder / "environment"
    file.touch(mode=0o600)
    names = [name for name in cluster.environment if name.startswith(("PREFECT_", "MLFLOW_", "RAY_", "AWS_", "GMEM_"))]
    file.write_text("".join(f"export {name}={quote(cluster.environment[name])}\n" for name in names))
    print(f"in another terminal: . {file}; then gmem run emoji --store {cluster.store}", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    print("stopping", flush=True)


def run(cluster: LocalCluster) -> None:
    """The small pipeline, and the jobs that came of it."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as pictures:
        print(cluster.run_pipeline(some_pictures(Path(pictures))), flush=True)
    for job in sorted(cluster.jobs(), key=lambda job: job["start_time"]):
        seconds = (job["end_time"] - job["start_time"]) / 1000
        print(f"{job['submission_id']:44} {job['status']:10} {seconds:6.1f} s", flush=True)
    print(f"pipeline completed in {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
