"""The installed package, from a wheel in an environment of its own, in a folder with modules of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.recipe.files import assignments
from infra.processes import free_ports

from .conftest import SMALL, last_json, options, shadow

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel; what the wheel depends on is borrowed from our own."""
    tmp_path = tmp_path_factory.mktemp("installed")
    uv = Path(sys.executable).with_name("uv")
    sources = tmp_path / "sources"
    for package in ("flows", "gmem", "storage"):
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    build = [uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, sources]
    subprocess.run(build, check=True, env={"PATH": str(uv.parent), "VIRTUAL_ENV": sys.prefix})
    (wheel,) = tmp_path.glob("*.whl")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def test_a_stage_runs_from_a_folder_with_modules_of_our_names(
    environment: Path, surroundings: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    shadow(tmp_path)
    done = subprocess.run(
        [environment / "gmem", "stage", "ingest", "emoji", "--json", *options(pictures, tmp_path / "runs")],
        env=surroundings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    ingest = last_json(done)
    assert ingest["fresh"] and ingest["rows"] == 40
    where = [environment / "python", "-c", "import sys; sys.path.pop(0); import flows; print(flows.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(environment.parent))


@contextmanager
def running(command: list[str | Path], environment: dict[str, str], folder: Path, log: str) -> Iterator[Path]:
    """A process in a folder, until the block ends, and the file that it writes to."""
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield folder / log
    finally:
        process.terminate()
        process.wait(60)


def answered(url: str) -> None:
    """Waits until somebody answers there."""
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"nobody answers at {url}")


def triggered(name: str, parameters: dict[str, object]) -> FlowRun:
    """A run of a deployment, once it has ended; the deployment may not be known yet."""
    for _ in range(60):
        try:
            return run_deployment(name, parameters=parameters, timeout=400, poll_interval=2)  # type: ignore[return-value]
        except ObjectNotFound:
            time.sleep(1)
    raise AssertionError(f"{name} was not served")


def test_a_flow_is_served_as_prefect_teaches_it(
    environment: Path, surroundings: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    """Without the repository, its prefect.yaml, or a work pool: the whole pipeline, with the store where it is served."""
    (port,) = free_ports(1)
    api = f"http://127.0.0.1:{port}/api"
    there = surroundings | {"PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    there["PREFECT_HOME"] = str(tmp_path / "prefect")  # else its deployment would be in every other server too
    server = [environment / "python", "-m", "prefect", "server", "start", "--port", str(port)]
    serve = [environment / "python", "-c", "from flows.pipeline import pipeline; pipeline.serve('served')"]
    small = assignments([*SMALL, f"data.source={pictures}", "data.max_pixels=100000000"])
    with running(server, there, tmp_path, "server.log"), temporary_settings({PREFECT_API_URL: api}):
        answered(f"{api}/health")
        with running(serve, there, tmp_path, "serve.log") as log:
            run = triggered("pipeline/served", {"recipe": "emoji", "overrides": small})
            assert run.state and run.state.is_completed(), log.read_text()[-5000:]
    assert len(list(tmp_path.glob("runs/report/*/manifest.json"))) == 1
