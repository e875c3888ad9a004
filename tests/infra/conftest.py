"""What the files of infra/ say, read once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: it comes with the dev extra")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """A validator's program beside this Python, or anywhere; the test is skipped without it."""
    return _tool


@dataclass(frozen=True)
class Container:
    """A container of a manifest, with the pod it is in and the path to it for messages."""

    where: str
    spec: dict[str, Any]
    pod: dict[str, Any]


def pods(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a manifest, of custom resources as well."""
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield where, node
            return
        for key, value in node.items():
            yield from pods(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from pods(value, f"{where}[{index}]")


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of secrets.sh, as infra/.env would hold it."""
    path = tmp_path_factory.mktemp("infra") / ".env"
    path.write_text(subprocess.run(["sh", INFRA / "secrets.sh"], check=True, capture_output=True, text=True).stdout)
    return path


@pytest.fixture(scope="session")
def source() -> dict[str, Any]:
    """compose.yaml as written, its variables not filled in."""
    return dict(yaml.safe_load((INFRA / "compose.yaml").read_text()))


@pytest.fixture(scope="session")
def services(secrets: Path) -> dict[str, dict[str, Any]]:
    """The services as Docker Compose understands them, GPU profile and all."""
    command = [_tool("docker-compose"), "--file", str(INFRA / "compose.yaml"), "--env-file", str(secrets)]
    done = subprocess.run(
        [*command, "--profile", "gpu", "config", "--format", "json"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


@pytest.fixture(scope="session")
def manifests() -> dict[str, dict[str, Any]]:
    """Every Kubernetes object by kind and name, the RayJob's being that which its name begins with."""
    files = [path for path in sorted((INFRA / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"]
    documents = [document for path in files for document in yaml.safe_load_all(path.read_text())]
    named = [(d["metadata"].get("name") or d["metadata"]["generateName"], d) for d in documents]
    assert len({(d["kind"], name) for name, d in named}) == len(named)
    return {f"{d['kind']}/{name}": d for name, d in named}


@pytest.fixture(scope="session")
def containers(manifests: dict[str, dict[str, Any]]) -> list[Container]:
    return [
        Container(f"{name}{where}:{container['name']}", container, pod["spec"])
        for name, manifest in manifests.items()
        for where, pod in pods(manifest)
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    ]
