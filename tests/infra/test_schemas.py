"""The files of infra/ before the validators that the registries have."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = ("1.33", "1.37")
OURS = yaml.safe_load(Path(__file__).with_name("kuberay.schema.yaml").read_text())


def test_docker_compose_accepts_the_file_with_all_secrets_only(
    tool: Callable[[str], str], services: dict[str, Any], tmp_path: Path
) -> None:
    assert {"s3", "prefect", "mlflow", "ray-head", "ray-worker", "ray-worker-gpu", "prefect-worker"} <= services.keys()
    shutil.copy(INFRA / "compose.yaml", tmp_path)
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [tool("docker-compose"), "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert done.returncode != 0 and "sh infra/secrets.sh > infra/.env" in done.stderr


def test_docker_compose_takes_the_secrets_that_lie_beside_the_file(
    tool: Callable[[str], str], secrets: Path, tmp_path: Path
) -> None:
    shutil.copy(INFRA / "compose.yaml", tmp_path)
    shutil.copy(secrets, tmp_path / ".env")
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [tool("docker-compose"), "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    subprocess.run(command, check=True, env=bare, cwd=tmp_path.parent)


def test_hadolint_finds_nothing_in_the_dockerfile(tool: Callable[[str], str]) -> None:
    done = subprocess.run([tool("hadolint"), str(INFRA / "Dockerfile")], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in INFRA.glob("*.sh")))
def test_scripts_are_executable_shell(script: str) -> None:
    subprocess.run(["sh", "-n", INFRA / script], check=True)
    assert os.access(INFRA / script, os.X_OK)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_schemas_accept_every_manifest_and_pod(
    version: str, manifests: dict[str, Any], containers: list[Any]
) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for manifest in manifests.values():
        if not manifest["apiVersion"].startswith("ray.io/"):
            validate(manifest, version, strict=True)
    for spec in {id(container.pod): container.pod for container in containers}.values():
        template = {"metadata": {"name": "any"}, "template": {"spec": spec}}
        validate({"apiVersion": "v1", "kind": "PodTemplate"} | template, version, strict=True)


def test_kuberay_has_every_field_of_the_cluster_and_the_job(manifests: dict[str, Any]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(OURS)
    rays = [manifest for manifest in manifests.values() if manifest["apiVersion"].startswith("ray.io/")]
    assert {manifest["kind"] for manifest in rays} == {"RayCluster", "RayJob"}
    for manifest in rays:
        validator.validate(manifest)
    misspelt = yaml.safe_load(yaml.safe_dump(manifests["RayCluster/gmem"]).replace("workerGroupSpecs", "workerGroups"))
    assert not validator.is_valid(misspelt)


def test_kustomize_lists_every_manifest_but_the_job() -> None:
    listed = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (INFRA / "kubernetes").glob("*.yaml")}
    assert set(listed) == there - {"kustomization.yaml", "job.yaml"} and len(listed) == len(set(listed))
