"""How each server of the topology is started as a local process, and when it is up."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from infra.processes import HOST, Processes, answers, free_ports, get, listens

Wait = Callable[[], None]


def s3(processes: Processes, environment: dict[str, str], port: int) -> Wait:
    processes.start("s3", ["moto_server", "-H", HOST, "-p", str(port)], environment)
    return lambda: processes.wait("s3", lambda: listens(port))


def postgres(processes: Processes, folder: Path, port: int) -> tuple[str, Wait]:
    """PostgreSQL in a folder of its own, with databases prefect and mlflow; its address, empty where none is installed.

    It refuses to run as root, so there it runs as a user with fewer rights.
    """
    programs = _postgres_programs()
    if programs is None:
        return "", lambda: None
    user = _unprivileged()
    data = folder / "postgres"
    data.mkdir()
    if user:
        folder.chmod(0o711)
        shutil.chown(data, user)
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    start: list[str | Path] = [programs / "initdb", "-D", data, "-U", "gmem", "--auth=trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(start, env=environment, user=user, cwd=data, check=True, capture_output=True)
    quick = [f"-c{setting}" for setting in ("fsync=off", "max_connections=200", f"listen_addresses={HOST}")]
    processes.start(
        "postgres",
        [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(data), *quick],
        environment,
        cwd=data,
        user=user,
    )
    address = f"{HOST}:{port}"

    def wait() -> None:
        ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", HOST, "-p", str(port)]
        processes.wait("postgres", lambda: subprocess.run(ready, check=False).returncode == 0)
        for name in ("prefect", "mlflow"):
            create: list[str | Path] = [programs / "createdb", "-h", HOST, "-p", str(port), "-U", "gmem", name]
            subprocess.run(create, check=True, capture_output=True)

    return address, wait


def _postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs: on the path, or where Debian puts them."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = Path(on_path).resolve() if on_path else debian[-1] if debian else None
    return found.parent if found else None


def _unprivileged() -> str | None:
    """Whom root runs PostgreSQL as; None for anybody else."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'; add one of them")


def prefect(processes: Processes, environment: dict[str, str], port: int, database: str) -> Wait:
    own = {"PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://gmem@{database}/prefect"} if database else {}
    start = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    processes.start("prefect", start, environment | own)
    return lambda: processes.wait("prefect", lambda: answers(f"http://{HOST}:{port}/api/health"))


def mlflow(processes: Processes, environment: dict[str, str], port: int, database: str, folder: Path) -> Wait:
    """MLflow with its artifacts in the object store; on SQLite where there is no PostgreSQL, or no driver for it."""
    uri = (
        f"postgresql+psycopg2://gmem@{database}/mlflow"
        if database and find_spec("psycopg2")
        else f"sqlite:///{folder}/mlflow.db"
    )
    # Its own background jobs (scoring of traces) would start ten more processes that nobody here needs.
    own = {"MLFLOW_S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"], "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    start = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", uri,
             "--artifacts-destination", "s3://mlflow"]  # fmt: skip
    without = {key: value for key, value in environment.items() if key != "MLFLOW_TRACKING_URI"}
    processes.start("mlflow", start, without | own, cwd=folder)
    return lambda: processes.wait("mlflow", lambda: answers(f"http://{HOST}:{port}/health"))


def ray_nodes(processes: Processes, environment: dict[str, str], ports: dict[str, int], folder: Path) -> Wait:
    """A head with the jobs API and a worker node, as if they were two machines of one CPU."""
    inner = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    agents = free_ports(2)
    common = ["ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000"]
    head = ["--head", f"--port={ports['ray']}", f"--node-ip-address={HOST}", f"--dashboard-port={ports['jobs']}", f"--dashboard-host={HOST}",
            f"--ray-client-server-port={ports['client']}", f"--dashboard-agent-listen-port={agents[0]}", "--num-cpus=1",
            f"--temp-dir={folder}/ray"]  # fmt: skip
    worker = [
        f"--address={HOST}:{ports['ray']}",
        f"--node-ip-address={HOST}",
        f"--dashboard-agent-listen-port={agents[1]}",
        "--num-cpus=1",
    ]
    processes.start("ray-head", common + head, inner)
    jobs, token = f"http://{HOST}:{ports['jobs']}", Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    def alive() -> bool:
        if not answers(f"{jobs}/api/version", token):
            return False
        nodes = json.loads(get(f"{jobs}/nodes?view=summary", token))["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == 2

    def wait() -> None:
        processes.wait("ray-worker", alive)

    processes.wait("ray-head", lambda: listens(ports["ray"]))
    processes.start("ray-worker", common + worker, inner)
    return wait
