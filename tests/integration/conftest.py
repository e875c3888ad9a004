"""What the integration tests share: pictures good and bad, and the command as a user would type it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.cli import ENVIRONMENT, main
from infra import local_cluster

GMEM = Path(sys.executable).with_name("gmem")


def pairs(sections: dict[str, dict[str, Any]]) -> list[str]:
    """Overrides by section as the command line takes them: `train.steps=6`."""
    return [f"{section}.{key}={value}" for section, keys in sections.items() for key, value in keys.items()]


SMALL = [*pairs(local_cluster.SMALL), "cluster.cpus=2", "cluster.object_store_gib=0.2"]
"""The demo's recipe made small enough for a test, on an embedded Ray."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 usable pictures in two classes, of many forms, and six that cannot be used."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(36):
        folder = root / ("round" if i % 2 else "square") / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        noise = random.integers(0, 256, (int(random.integers(48, 130)), int(random.integers(48, 130)), 3), np.uint8)
        suffix = ("png", "jpg", "webp")[i % 3]
        Image.fromarray(noise).resize((80, 70)).save(folder / f"{i:02d}.{suffix}")
    gradient = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8)[:, None, None], (1, 90, 3)))
    gradient.convert("CMYK").save(root / "round" / "cmyk.jpg")
    gradient.convert("RGBA").save(root / "round" / "alpha.png")
    gradient.convert("P").save(root / "square" / "palette.png")
    Image.fromarray(np.arange(8100, dtype=np.uint16).reshape(90, 90)).save(root / "square" / "sixteen.png")

    whole = io.BytesIO()
    gradient.save(whole, "PNG")
    (root / "round" / "truncated.png").write_bytes(whole.getvalue()[:200])
    (root / "round" / "empty.png").write_bytes(b"")
    (root / "round" / "text.jpg").write_text("not a picture")
    Image.new("1", (20_000, 20_000)).save(root / "square" / "bomb.png")
    return root


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the commands: a Prefect home of their own, and no servers of anybody else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    return kept | {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "COLUMNS": "200"}


@pytest.fixture(scope="session")
def gmem(surroundings: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `gmem ARGUMENTS` and returns what came of it."""

    def run(*arguments: str, timeout: float = 800, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [GMEM, *arguments], env=surroundings, capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False
        )

    return run


@pytest.fixture
def ask(
    surroundings: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same for commands that start no server: in this process, which has imported all they need."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        terminate = signal.getsignal(signal.SIGTERM)
        for name, value in (ENVIRONMENT | surroundings).items():  # so that what main sets is taken back
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["gmem", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, terminate)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def options(source: Path, store: Path, *more: str) -> list[str]:
    """Command-line options of a small run."""
    return command_line([*SMALL, f"data.source={source}", "data.max_pixels=100000000", *more], str(store))


def command_line(overrides: list[str], store: str) -> list[str]:
    return [part for pair in overrides for part in ("--set", pair)] + ["--store", store]


def last_json(finished: subprocess.CompletedProcess[str]) -> Any:
    """The JSON object on the last line of standard output; the whole output where the command failed."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "runs"


@pytest.fixture(scope="session")
def first(
    gmem: Callable[..., subprocess.CompletedProcess[str]], pictures: Path, store: Path
) -> dict[str, dict[str, Any]]:
    """What the first run says of each stage. Source and store are relative, and jobs run in other folders."""
    near = options(Path(os.path.relpath(pictures, store.parent)), Path("./runs"))
    shadow(store.parent)
    return by_stage(gmem("run", "emoji", "--json", *near, cwd=store.parent))


OTHERS = ("flows/__init__", "gmem", "storage/__init__", "click", "yaml", "types", "random", "torch", "ray", "typing",
          "json", "numpy", "uvicorn", "prefect", "mlflow/__init__", "multiprocessing")  # fmt: skip


def shadow(folder: Path) -> None:
    """Somebody's own modules in the folder that we are started in, with the names of ours and of libraries."""
    for name in (f"{other}.py" for other in OTHERS):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("raise ImportError('these are not the modules that are looked for')")


def by_stage(finished: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in last_json(finished)["stages"]}
