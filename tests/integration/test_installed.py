"""The installed package, from a wheel in an environment of its own, in a folder with modules of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import last_json, options, shadow

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The `bin` of a new environment with the wheel; what the wheel depends on is borrowed from our own."""
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
