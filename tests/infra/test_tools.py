"""The two programs of infra/: health checks, and the arithmetic of sizes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

INFRA = Path(__file__).parents[2] / "infra"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, INFRA / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_health_check_tells_well_from_ill_from_absent(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    healthy = load("healthy")
    assert healthy.main(f"{address}/well") == 0
    assert healthy.main(f"{address}/ill") == 1 and "503" in capsys.readouterr().err
    assert healthy.main("http://127.0.0.1:9/nobody") == 1 and "refused" in capsys.readouterr().err


def test_a_health_check_runs_without_any_package(address: str) -> None:
    command = [sys.executable, "-IS", str(INFRA / "healthy.py"), f"{address}/well"]
    subprocess.run(command, check=True, timeout=30)


def test_sizes_follow_from_the_formats() -> None:
    sizing = load("sizing")
    run = sizing.Run(1.28e6)
    stored, seconds = run.stored(), run.gpu_seconds()
    assert stored["patch tokens"] == pytest.approx(84e9, rel=0.01)  # with mirrored images
    assert stored["latents"] == 2.56e6 * 32 * 16 * 16 * 2
    published = seconds["train"] * sizing.TRAINED / 355
    assert published / 8 / 3600 == pytest.approx(20, rel=0.01)  # 20 h on 8 H800
    assert stored["checkpoints"] / 4 == pytest.approx(683.12e6 * 16)


def test_sizing_takes_its_numbers_from_the_code() -> None:
    sizing = load("sizing")
    bank = (INFRA.parent / "storage" / "tables" / "bank_index.py").read_text()
    found = re.search(r"^HNSW_UNTIL = ([\d_]+)", bank, re.MULTILINE)
    assert found and int(found[1]) == sizing.HNSW_UNTIL


@pytest.mark.parametrize(
    ("pictures", "mirror", "epochs", "gpus"), [(1.28e6, True, None, [1, 8, 64]), (1e9, False, 1, [64, 512])]
)
def test_the_readme_shows_what_sizing_computes(
    pictures: float, mirror: bool, epochs: int | None, gpus: list[int]
) -> None:
    sizing = load("sizing")
    run = sizing.Run(pictures, mirror, epochs * pictures) if epochs else sizing.Run(pictures, mirror)
    readme = (INFRA / "README.md").read_text()
    assert sizing.bytes_table(run) in readme
    assert sizing.hours_table(run, gpus) in readme
